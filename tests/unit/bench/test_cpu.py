"""Interleaved programs: each gets the same number of turns; one that cannot run is skipped."""

import sys

import pytest

from tools.bench import cpu

pytestmark = pytest.mark.slow

PROGRAM = """
import sys, time
sys.path.insert(0, "tools/bench/baselines")
from protocol import serve_turns
done = []
def step():
    done.append(1)
    time.sleep({seconds})
    return float(len(done))
serve_turns(step, 7)
"""


@pytest.fixture
def programs(monkeypatch):
    def words(seconds):
        return ("", ["-c", PROGRAM.format(seconds=seconds)])

    made = {
        "paxlike": words(0.02),
        "slow": words(0.3),
        "broken": ("", ["-c", "raise SystemExit(3)"]),
    }
    made[cpu.XLA_MATMUL] = words(0.02)
    monkeypatch.setattr(cpu, "PROGRAMS", made)
    return list(made)


def test_programs_are_interleaved(programs, capsys):
    running = cpu.run_interleaved(programs, {"": sys.executable}, turns=3, steps=2)
    assert [one.name for one in running] == ["paxlike", "slow", cpu.XLA_MATMUL]
    assert "skipped: broken exited with code 3" in capsys.readouterr().out
    for one in running:
        # The first step, one warmup turn, three recorded turns.
        assert len(one.seconds) == len(one.cpu_seconds) == 3 and one.loss == 1 + 4 * 2
        assert (
            one.parameters == 7
            and one.first_step > 0
            and one.peak_bytes > 1e6
            and one.process.returncode == 0
        )
    lines = cpu.markdown_table(running, {"cold": 12.3}).splitlines()
    cells = {line.split(" | ")[0][2:]: line.strip("| ").split(" | ") for line in lines[2:5]}
    fast, slow = running[0].rate, running[1].rate
    assert fast > 2 * slow
    assert (
        cells["slow"][1] == f"{slow:.0f}"
        and cells["slow"][4] == f"{fast / slow:.2f}"
        and cells["paxlike"][4] == "1.00"
    )
    assert "first step after 12.3 s" in lines[-1]


def test_the_time_to_the_first_step_includes_process_startup(programs):
    program = cpu.start("slow", {"": sys.executable})
    program.end()
    assert 0.08 <= program.first_step < 30
