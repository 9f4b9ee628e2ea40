"""Commands that the launchers run without a shell, or print as equivalent lines of bash."""

import argparse
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass

PREEMPTED = 128 + 15
"""Exit code of `paxlike train` when SIGTERM stopped it before its last step, after saving."""


@dataclass(frozen=True)
class Step:
    """A command with its standard input. It is skipped if the command `unless` succeeds."""

    argv: list[str]
    stdin: str = ""
    unless: list[str] | None = None

    def as_bash(self) -> str:
        line = shlex.join(self.argv)
        if self.unless:
            line = f"{shlex.join(self.unless)} >/dev/null 2>&1 || {line}"
        return f"{line} <<'END'\n{self.stdin}\nEND" if self.stdin else line


def run_steps(steps: list[Step], dry_run: bool) -> int:
    """Runs the steps up to the first failure and returns its exit code, or 0.

    With `dry_run`, prints the steps instead and returns 0.
    """
    for step in steps:
        if dry_run:
            print(step.as_bash())
            continue
        try:
            if step.unless and subprocess.run(step.unless, capture_output=True).returncode == 0:
                print(f"already exists: {shlex.join(step.unless)} succeeded", file=sys.stderr)
                continue
            code = subprocess.run(step.argv, input=step.stdin or None, text=True).returncode
        except FileNotFoundError as error:
            print(
                f"{error.filename} is not on PATH; install it, or use --dry-run to print the "
                "commands.",
                file=sys.stderr,
            )
            return 127
        except KeyboardInterrupt:
            return 130
        if code:
            print(f"exit code {code}: {shlex.join(step.argv)}", file=sys.stderr)
            return code
    return 0


def confirm(question: str, flags: argparse.Namespace) -> bool:
    """Asks for confirmation on the terminal. Returns True with --yes or --dry-run."""
    if flags.yes or flags.dry_run:
        return True
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(arguments of the launcher, arguments of `paxlike train`): split at the first --."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def flag_or_variable(
    parser: argparse.ArgumentParser, flag: str, value: str | None, variable: str
) -> str:
    """Returns the flag's value, or the environment variable's. Exits with an error without both."""
    if not (value or os.environ.get(variable)):
        parser.error(
            f"give {flag} or set {variable}; `gcloud config list` shows gcloud's own default."
        )
    return value or os.environ[variable]
