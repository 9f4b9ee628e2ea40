"""Positional arguments before a command's flags, and texts that begin with a dash."""

import pytest

from paxlike.commands.flags import take, take_text
from paxlike.commands.run import GenerateFlags
from paxlike.config import UserError


def text(*arguments: str) -> tuple[str, list[str]]:
    return take_text(list(arguments), "PROMPT", "generate RUN", GenerateFlags)


@pytest.mark.parametrize(
    ("arguments", "prompt", "rest"),
    [
        (("The ", "--seed", "3"), "The ", ["--seed", "3"]),
        (("- item", "--seed", "3"), "- item", ["--seed", "3"]),
        (("--x", "--seed", "3"), "--x", ["--seed", "3"]),
        (("",), "", []),
        (("--", "- item"), "- item", []),
        (("--seed", "3", "--", "--seed"), "--seed", ["--seed", "3"]),
        (("--help",), "", ["--help"]),
    ],
)
def test_the_prompt(arguments, prompt, rest):
    assert text(*arguments) == (prompt, rest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "requires PROMPT first"),
        (("--seed", "3"), "requires PROMPT first"),
        (("--hosts.count=2",), "requires PROMPT first"),
        (("--",), "give one PROMPT after --; there are 0"),
        (("--", "a", "b"), "there are 2"),
        (("a\udcffb",), "PROMPT is not valid UTF-8 at character 1"),
    ],
)
def test_no_prompt(arguments, message):
    with pytest.raises(UserError, match=message):
        text(*arguments)


def test_a_run_is_no_flag():
    assert take(["runs/a", "--seed"], "RUN", "eval") == ("runs/a", ["--seed"])
    with pytest.raises(UserError, match="requires RUN first"):
        take(["--seed"], "RUN", "eval")
