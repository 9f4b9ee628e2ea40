"""Programs that take turns: each is asked as often, the medians are compared, and one that cannot run is left out by name."""

import sys

import pytest

from tools.bench import cpu

PROGRAM = """
import sys, time
sys.path.insert(0, "tools/bench/twins")
from contest import contend
done = []
def step():
    done.append(1)
    time.sleep({seconds})
    return float(len(done))
contend(step, 7)
"""


@pytest.fixture
def programs(monkeypatch):
    def words(seconds):
        return ("", ["-c", PROGRAM.format(seconds=seconds)])

    made = {"paxlike": words(0.02), "slow": words(0.08), "broken": ("", ["-c", "raise SystemExit(3)"])}
    made["a 4096³ product, XLA"] = words(0.02)
    monkeypatch.setattr(cpu, "PROGRAMS", made)
    return list(made)


def test_programs_take_turns(programs, capsys):
    running = cpu.contest(programs, {"": sys.executable}, turns=3, steps=2)
    assert [one.name for one in running] == ["paxlike", "slow", "a 4096³ product, XLA"]
    assert "left out: broken ended with code 3" in capsys.readouterr().out
    for one in running:
        # The first step, one turn that does not count, three that do.
        assert len(one.seconds) == len(one.cpu_seconds) == 3 and one.loss == 1 + 4 * 2
        assert one.parameters == 7 and one.first_step > 0 and one.peak_bytes > 1e6 and one.process.returncode == 0
    lines = cpu.table(running, {"cold": 12.3}).splitlines()
    cells = {line.split(" | ")[0][2:]: line.strip("| ").split(" | ") for line in lines[2:5]}
    fast, slow = running[0].rate, running[1].rate
    assert fast > 2 * slow
    assert (
        cells["slow"][1] == f"{slow:.0f}" and cells["slow"][4] == f"{fast / slow:.2f}" and cells["paxlike"][4] == "1.00"
    )
    assert "first step after 12.3 s" in lines[-1]


def test_the_first_step_is_counted_from_the_start_of_the_process(programs):
    begun = cpu.start("slow", {"": sys.executable})
    begun.end()
    assert 0.08 <= begun.first_step < 30
