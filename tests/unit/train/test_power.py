"""Energy from fake meters: watts over time, counters that start again, sources that fail; the loop never waits for them."""

import os
import stat
import threading
import time

import pytest

from paxlike.train import power
from paxlike.train.power import EnergyMeter, Source, nvidia_watts, rapl_source, watts_source


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def quiet(source: Source, clock=time.monotonic) -> EnergyMeter:
    """A meter whose thread does not read: only `sample` does."""
    meter = EnergyMeter(source, period=3600, clock=clock)
    meter.close()
    return meter


def test_power_is_added_up_over_the_time_between_readings():
    readings = iter([[100.0, 200.0], [200.0, 300.0], [0.0, 0.0]])
    clock = Clock()
    meter = quiet(watts_source(lambda: next(readings)), clock)
    clock.now += 10
    meter.sample()
    assert meter.joules == (300 + 500) / 2 * 10 and "2 GPUs" in meter.source.name
    clock.now += 4
    meter.sample()
    assert meter.joules == 4000 + 250 * 4


def package(root, name: str, energy: int, limit: int = 1_000_000_000) -> None:
    (root / name).mkdir(exist_ok=True)
    (root / name / "energy_uj").write_text(f"{energy}\n")
    (root / name / "max_energy_range_uj").write_text(f"{limit}\n")


def test_rapl_counters_of_the_packages_only_and_over_their_end(tmp_path):
    package(tmp_path, "intel-rapl:0", 900_000_000)
    package(tmp_path, "intel-rapl:1", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 777)  # a part of package 0
    meter = quiet(rapl_source(tmp_path))
    package(tmp_path, "intel-rapl:0", 100_000_000)  # by way of its end at 1e9
    package(tmp_path, "intel-rapl:1", 6_500_000)
    meter.sample()
    assert meter.joules == pytest.approx(200 + 1.5) and "2 CPU packages" in meter.source.name


def test_where_nothing_can_be_read_there_is_no_source(tmp_path, monkeypatch):
    assert rapl_source(tmp_path) is None and power.source_here("tpu") is None
    package(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # as unreadable to everyone but root
    monkeypatch.setattr(power, "RAPL", tmp_path)
    assert power.source_here("cpu") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power.source_here("gpu") is None


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("no number")])
def test_a_source_that_fails_is_not_asked_again(error):
    def joules(seconds):
        raise error

    meter = EnergyMeter(Source("broken", joules), period=0.001)
    meter._thread.join(timeout=30)
    assert meter.failed and not meter._thread.is_alive() and meter.joules == 0


def test_the_loop_does_not_wait_for_a_meter_that_hangs():
    asked, release = threading.Event(), threading.Event()

    def joules(seconds):
        asked.set()
        release.wait(60)
        return 5.0

    meter = EnergyMeter(Source("slow", joules), period=0.001)
    assert asked.wait(30)
    assert meter.joules == 0.0  # answers at once, while the source hangs
    meter.close()
    release.set()
    meter._thread.join(timeout=30)
    assert meter.joules == 5.0


def test_watts_by_the_vendors_tool(tmp_path, monkeypatch):
    def tool(body: str) -> str:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert nvidia_watts(tool(f'echo "$@" > {tmp_path}/asked; printf "312.50\\n99.5\\n"')) == [312.5, 99.5]
    asked = (tmp_path / "asked").read_text().split()
    assert "--query-gpu=power.draw" in asked and asked[-2:] == ["-i", "1,3"]
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "2 GPUs" in power.source_here("gpu").name
    tool('echo "[N/A]"')
    assert power.source_here("gpu") is None
