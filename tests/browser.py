"""Opens a page in Chromium."""

import shutil
import subprocess
from pathlib import Path

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)


def browse(folder: Path, page: Path, *arguments: str) -> str:
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", "--window-size=1280,2200",
        *arguments, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, text=True, capture_output=True, timeout=180)
    assert done.returncode == 0, done.stderr
    return done.stdout
