"""Progress on standard error: a bar on a terminal, plain lines in a log file or batch job."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

SECONDS_PER_LINE = 10


@contextlib.contextmanager
def progress(title: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(bytes)`. Without a terminal it writes a line every 10 seconds and at the
    end.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
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
        if time.monotonic() - shown >= SECONDS_PER_LINE:
            shown = time.monotonic()
            show()

    yield advance
    show()


@contextlib.contextmanager
def counting(title: str, unit: str) -> Iterator[Callable[[int], None]]:
    """Progress of unknown total: yields `show(count)`."""
    console = Console(stderr=True)
    begin = shown = time.monotonic()
    last = 0

    def line() -> str:
        rate = last / max(time.monotonic() - begin, 1e-9)
        return f"{title}: {last:,} {unit}, {rate:,.0f} per second"

    with console.status(title) if console.is_terminal else contextlib.nullcontext() as status:

        def show(count: int) -> None:
            nonlocal last, shown
            last = count
            if time.monotonic() - shown >= (0.2 if status else SECONDS_PER_LINE):
                shown = time.monotonic()
                status.update(line()) if status else say(line())

        yield show
    say(line())


def say(message: str) -> None:
    """Prints a plain line on standard error."""
    Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)
