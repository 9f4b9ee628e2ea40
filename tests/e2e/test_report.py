"""Runs `paxlike report` on a run that was killed and resumed, and opens the page in a browser."""

import json
import re
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from browser import BROWSER, browse
from programs import environment
from sample_runs import realistic_run

ROOT = Path(__file__).resolve().parents[2]


def paxlike(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "paxlike", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(), text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Maximum seconds between two clock readings for one line: on a busy machine a process waits to run.
TOLERANCE = 1.0
TRAIN = (
    "train", str(ROOT / "configs" / "tiny.py"), "--run-dir", "run",
    "--data.store", "store", "--data.sequence-length", "32",
    "--model.layers", "2", "--model.d-model", "32", "--model.heads", "4", "--model.head-dim", "8",
    "--model.d-ff", "64", "--model.vocab-size", "320",
    "--train.steps", "30", "--checkpoint.every", "5", "--eval.every", "10", "--eval.batches", "1",
    "--log.every", "1000", "--log.sample", "", "--log.no-tensorboard",
)  # fmt: skip


# The same config, but the training loop blocks at step 60. Checkpoints are still written.
BLOCKED = f"""
import runpy
import threading
from pathlib import Path

from paxlike.training.clock import ReadyClock

config = runpy.run_path({TRAIN[1]!r})["config"]
watch, seen = ReadyClock.watch, []


def blocked(clock, arrays):
    watch(clock, arrays)
    seen.append(1)
    if len(seen) == 60:
        Path("blocked").touch()
        threading.Event().wait()


ReadyClock.watch = blocked
"""


@pytest.mark.slow
def test_report_of_a_killed_and_resumed_run(tmp_path):
    """After kill -9 between checkpoints, goodput matches the wall clock and the repeated steps."""
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(
            f"The number {number} is followed by {number + 1}.\n" * 20
        )
    prepare = "data prepare --input *.txt --output store --tokenizer bytes"
    paxlike(tmp_path, *prepare.split(), "--validation-fraction", "0.2")
    (tmp_path / "blocked.py").write_text(BLOCKED)
    command = ["train", "blocked.py", *TRAIN[2:]]
    command += ["--train.steps", "100000", "--checkpoint.every", "40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "paxlike", *command],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (
        (tmp_path / "blocked").exists() and (tmp_path / "run" / "checkpoints" / "40").is_dir()
    ):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    running = json.loads(paxlike(tmp_path, "report", "run", "--json"))["runs"][0]
    assert running["status"] == "in progress" and any(
        "in progress" in note for note in running["notes"]
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]
    reached = max(line["step"] for line in lines if "event" not in line)
    killed = json.loads(paxlike(tmp_path, "report", "run", "--json"))["runs"][0]
    assert killed["status"] == "not finished" and killed["steps"]["done"] == reached
    assert killed["goodput"]["wall_seconds"] == pytest.approx(
        lines[-1]["time"] - lines[0]["time"] + sum(lines[0]["goodput"].values()), abs=TOLERANCE
    )

    paxlike(tmp_path, *TRAIN, "--train.steps", str(reached + 20))
    resumed = json.loads(paxlike(tmp_path, "report", "run", "--json"))["runs"][0]
    second = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ][len(lines) :]
    restart = next(line for line in second if line.get("event") == "start")
    lost = sum(
        line["step_seconds"]
        for line in lines
        if "event" not in line and line["step"] > restart["step"]
    )
    seconds = resumed["goodput"]["seconds"]
    assert resumed["status"] == "finished" and len(resumed["attempts"]) == 2
    assert lost > 0 and seconds["repeated steps"] == pytest.approx(lost, abs=0.05)
    assert seconds["restart"] >= restart["time"] - lines[-1]["time"] - TOLERANCE
    wall = second[-1]["time"] - lines[0]["time"] + sum(lines[0]["goodput"].values())
    assert resumed["goodput"]["wall_seconds"] == pytest.approx(wall, abs=TOLERANCE)
    out = paxlike(tmp_path, "report", "run")
    assert re.search(r"steps? repeated", " ".join(out.split()))
    assert "goodput" in out and (tmp_path / "run" / "report.html").is_file()


# ---- in a browser --------------------------------------------------------------------------------


def pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """Returns (width, height, rows of RGB) of a PNG by Chromium: 8 bits, not interlaced."""
    width, height, depth, kind, *_, interlaced = struct.unpack(">IIBBBBB", png[16:29])
    assert (depth, interlaced) == (8, 0) and kind in (2, 6)
    at, packed = 8, b""
    while at < len(png):
        length, name = struct.unpack(">I4s", png[at : at + 8])
        packed += png[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += 12 + length
    data, size, wide = zlib.decompress(packed), 4 if kind == 6 else 3, 0
    wide = width * size
    rows, above = [], bytearray(wide)
    for y in range(height):
        filtered = data[y * (wide + 1)]
        row = bytearray(data[y * (wide + 1) + 1 : (y + 1) * (wide + 1)])
        for x in range(wide) if filtered else ():
            left, up, corner = (
                row[x - size] if x >= size else 0,
                above[x],
                above[x - size] if x >= size else 0,
            )
            guess = left + up - corner
            paeth = min(
                (abs(guess - left), 0, left),
                (abs(guess - up), 1, up),
                (abs(guess - corner), 2, corner),
            )[2]
            row[x] = (row[x] + (0, left, up, (left + up) // 2, paeth)[filtered]) & 255
        rows.append(bytes(row))
        above = row
    return (
        width,
        height,
        [row if size == 3 else b"".join(row[k : k + 3] for k in range(0, wide, 4)) for row in rows],
    )


@pytest.mark.slow
@pytest.mark.skipif(
    BROWSER is None,
    reason="needs Chromium; test_report_page.py tests the page without it",
)
@pytest.mark.parametrize("count", [1, 2])
def test_page_renders_in_a_browser(tmp_path, count):
    folders = [
        realistic_run(tmp_path / name, 300, seed, restart_at=200)
        for name, seed in (("<b>first", 1), ("second", 2))
    ][:count]
    page = tmp_path / "page.html"
    paxlike(tmp_path, "report", *map(str, folders), "--html", str(page))
    page.write_text(page.read_text().replace("</body>", "<p id=end></p></body>"))

    dom = browse(tmp_path, page, "--dump-dom")
    assert dom.count("<svg") == dom.count("</svg>") == 7 and dom.count("<polyline") >= 6 * count
    assert "&lt;b&gt;first" in dom and "<b>first" not in dom
    assert "Wall time by cause" in dom and 'id="end"' in dom and dom.count("<small>") >= 5 * count
    addresses = set(re.findall(r"https?://[^\"'\s<]*", dom))
    assert addresses <= {"http://www.w3.org/2000/svg"}

    browse(tmp_path, page, f"--screenshot={tmp_path / 'shot.png'}")
    width, height, rows = pixels((tmp_path / "shot.png").read_bytes())
    assert width == 1280 and height >= 2000
    colors: dict[bytes, int] = {}
    for row in rows[::2]:
        for k in range(0, len(row), 6):
            color = row[k : k + 3]
            colors[color] = colors.get(color, 0) + 1
    common = max(colors.values()) / sum(colors.values())
    assert len(colors) > 100 and common < 0.9  # The page is not blank.
    blue = bytes.fromhex("2563d9"), bytes.fromhex("6ea0ff")  # the first series, light or dark
    assert any(colors.get(color, 0) > 50 for color in blue)
