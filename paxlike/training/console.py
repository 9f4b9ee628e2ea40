"""Terminal output of a run: one live line, or plain lines if the output is not a terminal."""

import datetime

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text


class Console:
    def __init__(self, steps: int, every: int, quiet: bool):
        """quiet: print nothing (processes other than 0)."""
        self._out = RichConsole(quiet=quiet, highlight=False, soft_wrap=True)
        self._steps, self._every = steps, every
        self._live = (
            Live(console=self._out, refresh_per_second=4, transient=True)
            if self._out.is_terminal
            else None
        )

    def __enter__(self) -> "Console":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_) -> None:
        if self._live:
            self._live.stop()

    def say(self, message: str) -> None:
        self._out.print(message, markup=False)

    def step(self, step: int, values: dict[str, float], seconds_left: float) -> None:
        """Shows a step's metrics: on the live line, and as a plain line every `log.every` steps.

        The last step always gets a plain line.
        """
        parts = [
            f"step {step:>{len(str(self._steps))}}/{self._steps}",
            f"loss {values['loss']:.4f}",
            f"lr {values['learning_rate']:.2e}",
            f"grad {values['gradient_norm']:.3f}",
            f"{values['tokens_per_second']:,.0f} tokens/s",
            *([f"MFU {values['mfu']:.1%}, HFU {values['hfu']:.1%}"] if "mfu" in values else []),
            f"{datetime.timedelta(seconds=round(seconds_left))} left",
        ]
        line = " | ".join(parts)
        if self._live:
            self._live.update(Text(line, style="bold", no_wrap=True, overflow="ellipsis"))
        if step % self._every == 0 or step == self._steps:
            self.say(line)
