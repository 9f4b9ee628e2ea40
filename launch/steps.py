"""What the launchers share: a command is a list of arguments, run without a shell, or printed as the line of bash that does the same."""

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass

PREEMPTED = 128 + 15
"""How `paxlike train` exits when SIGTERM stopped it before its end, after saving."""


@dataclass(frozen=True)
class Step:
    """A command, its standard input, and a look-up that makes it needless where it succeeds."""

    argv: list[str]
    stdin: str = ""
    unless: list[str] | None = None

    def as_bash(self) -> str:
        line = shlex.join(self.argv)
        if self.unless:
            line = f"{shlex.join(self.unless)} >/dev/null 2>&1 || {line}"
        return f"{line} <<'END'\n{self.stdin}\nEND" if self.stdin else line


def carry_out(steps: list[Step], dry_run: bool) -> int:
    """Runs the steps until one fails and returns its exit code; `dry_run` prints them and returns 0."""
    for step in steps:
        if dry_run:
            print(step.as_bash())
            continue
        try:
            if step.unless and subprocess.run(step.unless, capture_output=True).returncode == 0:
                print(f"there already: {shlex.join(step.unless)}", file=sys.stderr)
                continue
            code = subprocess.run(step.argv, input=step.stdin or None, text=True).returncode
        except FileNotFoundError as error:
            print(
                f"{error.filename} is not on PATH; install it, or look with --dry-run at what would run.",
                file=sys.stderr,
            )
            return 127
        except KeyboardInterrupt:
            return 130
        if code:
            print(f"exit code {code}: {shlex.join(step.argv)}", file=sys.stderr)
            return code
    return 0


def confirmed(question: str, flags: argparse.Namespace) -> bool:
    """Whether to go on with what cannot be undone: asked for on the terminal unless --yes or --dry-run was given."""
    if flags.yes or flags.dry_run:
        return True
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(the launcher's own, those after the first --, which are for `paxlike train`)."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def given_or_set(parser: argparse.ArgumentParser, flag: str, value: str | None, variable: str) -> str:
    """The flag, or what the tool's own environment variable holds; no project or zone is ever assumed."""
    if not (value or os.environ.get(variable)):
        parser.error(
            f"{flag} is not given and {variable} is not set. `gcloud config list` shows what gcloud itself would take."
        )
    return value or os.environ[variable]
