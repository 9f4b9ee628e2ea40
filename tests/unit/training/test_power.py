"""Energy from fake sources: power over time, counters that wrap around, and failing sources."""

import os
import stat
import threading
import time

import pytest

from paxlike.training import power
from paxlike.training.power import EnergyMeter, Source, nvidia_watts, rapl_source, watts_source


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def meter_without_thread(source: Source, clock=time.monotonic) -> EnergyMeter:
    """Returns a meter that reads only when `sample` is called."""
    meter = EnergyMeter(source, period=3600, clock=clock)
    meter.close()
    return meter


def test_power_is_integrated_over_the_time_between_readings():
    readings = iter([[100.0, 200.0], [200.0, 300.0], [0.0, 0.0]])
    clock = Clock()
    meter = meter_without_thread(watts_source(lambda: next(readings)), clock)
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


def test_rapl_reads_only_package_counters_and_handles_wraparound(tmp_path):
    package(tmp_path, "intel-rapl:0", 900_000_000)
    package(tmp_path, "intel-rapl:1", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 777)  # a subdomain of package 0
    meter = meter_without_thread(rapl_source(tmp_path))
    package(tmp_path, "intel-rapl:0", 100_000_000)  # wrapped around at 1e9
    package(tmp_path, "intel-rapl:1", 6_500_000)
    meter.sample()
    assert meter.joules == pytest.approx(200 + 1.5) and "2 CPU packages" in meter.source.name


def test_no_source_if_nothing_can_be_read(tmp_path, monkeypatch):
    assert rapl_source(tmp_path) is None and power.energy_source("tpu") is None
    package(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # like a file that only root can read
    monkeypatch.setattr(power, "RAPL", tmp_path)
    assert power.energy_source("cpu") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power.energy_source("gpu") is None


@pytest.mark.parametrize("error", [OSError("gone"), ValueError("not a number")])
def test_a_failed_source_is_not_read_again(error):
    def joules(seconds):
        raise error

    meter = EnergyMeter(Source("broken", joules), period=0.001)
    meter._thread.join(timeout=30)
    assert meter.failed and not meter._thread.is_alive() and meter.joules == 0


def test_the_loop_does_not_wait_for_a_source_that_hangs():
    reading, release = threading.Event(), threading.Event()

    def joules(seconds):
        reading.set()
        release.wait(60)
        return 5.0

    meter = EnergyMeter(Source("slow", joules), period=0.001)
    assert reading.wait(30)
    assert meter.joules == 0.0  # returns immediately while the source hangs
    meter.close()
    release.set()
    meter._thread.join(timeout=30)
    assert meter.joules == 5.0


def test_watts_from_nvidia_smi(tmp_path, monkeypatch):
    def tool(body: str) -> str:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    script = tool(f'echo "$@" > {tmp_path}/arguments; printf "312.50\\n99.5\\n"')
    assert nvidia_watts(script) == [312.5, 99.5]
    arguments = (tmp_path / "arguments").read_text().split()
    assert "--query-gpu=power.draw" in arguments and arguments[-2:] == ["-i", "1,3"]
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "2 GPUs" in power.energy_source("gpu").name
    tool('echo "[N/A]"')
    assert power.energy_source("gpu") is None
