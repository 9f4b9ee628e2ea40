"""What a run shows on the terminal: one live line; plain lines where the output is no terminal."""

import datetime

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text


class Console:
    def __init__(self, steps: int, every: int, quiet: bool):
        """`quiet`: say nothing (all processes of a job but the first)."""
        self._out = RichConsole(quiet=quiet, highlight=False, soft_wrap=True)
        self._steps, self._every = steps, every
        self._live = Live(console=self._out, refresh_per_second=4, transient=True) if self._out.is_terminal else None

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
        """One step's numbers: the live line at each step, a plain line at every `log.every`th and the last."""
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
