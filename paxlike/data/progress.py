"""A progress bar on a terminal, plain lines elsewhere (a log file, a batch job)."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

SECONDS_A_LINE = 10


@contextlib.contextmanager
def progress(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(bytes)`. Writes to standard error; without a terminal, a line now and then and one at the end."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
                   TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total_bytes)
            yield lambda count: bar.advance(task, count)
        return

    begin = shown = time.monotonic()
    done = 0

    def show() -> None:
        speed = done / 1e6 / max(time.monotonic() - begin, 1e-9)
        say(f"{title}: {done / 1e6:,.1f} of {total_bytes / 1e6:,.1f} MB, {speed:.1f} MB/s")

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        if time.monotonic() - shown >= SECONDS_A_LINE:
            shown = time.monotonic()
            show()

    yield advance
    show()


def say(message: str) -> None:
    """A plain line on standard error."""
    Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)
