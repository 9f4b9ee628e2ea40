"""`paxlike generate RUN [PROMPT] --chat`: answers of a model that was tuned on conversations."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from paxlike.commands.flags import flags_of, platform, take, take_text
from paxlike.config import UserError


@dataclasses.dataclass(frozen=True)
class ChatFlags:
    """Answer PROMPT, the messages of a file, or what you type, as an assistant (--chat). Without a
    PROMPT, each line of the standard input is the user's next turn.
    """

    messages: Path | None = None
    """JSON file with a list of {role, content}, or an object with such `messages`."""
    system: str = ""
    """System message."""
    template: str = ""
    """Chat template: chatml, llama3, plain, or a Jinja file. Default: that of the run."""
    max_new_tokens: int | None = None
    """Maximum number of tokens of an answer. Default: what fits the model's context."""
    temperature: float = 0.8
    """0 selects the most likely token each time."""
    top_k: int = 40
    """Sample from the k most likely tokens. 0: from all."""
    top_p: float = 1.0
    """Sample from the fewest most likely tokens whose probabilities sum to p."""
    seed: int = 0
    """Seed of sampling. The same seed gives the same answers."""
    step: int | None = None
    """Checkpoint step. Default: the newest."""
    fake_devices: int | None = None
    """Simulate this many CPU devices."""


def chat_command(arguments: list[str]) -> None:
    """`generate` with --chat among its arguments."""
    arguments = list(arguments)
    arguments.remove("--chat")
    path, rest = take(arguments, "RUN", "generate")
    prompt = None
    if rest and (not rest[0].startswith("-") or "--" in rest):
        prompt, rest = take_text(rest, "PROMPT", "generate RUN", ChatFlags)
    flags = flags_of(ChatFlags, rest, "paxlike generate RUN [PROMPT] --chat")
    if flags.messages and (prompt is not None or flags.system):
        raise UserError("--messages is the whole conversation; leave out PROMPT and --system.")
    known = read_messages_file(flags.messages) if flags.messages else None
    platform().start(flags.fake_devices)
    from paxlike.api.run import open_run

    run = open_run(path, flags.step)

    def answer(messages: list[dict]) -> str:
        text = run.chat(
            messages,
            flags.max_new_tokens,
            flags.temperature,
            flags.top_k,
            flags.top_p,
            flags.seed,
            lambda new: print(new, end="", flush=True),
            flags.template,
        )
        print(flush=True)
        return text

    history = [{"role": "system", "content": flags.system}] if flags.system else []
    if known is not None:
        answer(known)
    elif prompt is not None:
        answer([*history, {"role": "user", "content": prompt}])
    else:
        for line in typed_lines():
            asked = {"role": "user", "content": line}
            # An answer without text is no turn that a template could render.
            if (text := answer([*history, asked])).strip():
                history += [asked, {"role": "assistant", "content": text}]


def read_messages_file(path: Path) -> list[dict]:
    """The messages of a JSON file. Raises UserError if it has none."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}. Give a JSON file.") from error
    found = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(found, list) or not found:
        raise UserError(
            f"{path} has no list of messages; give [{{'role': 'user', 'content': …}}, …]."
        )
    return found


def typed_lines() -> Iterator[str]:
    """The lines of the standard input that are not empty, with a prompt on a terminal."""
    terminal = sys.stdin.isatty()
    if terminal:
        print("Type a message; end with Ctrl-D.", file=sys.stderr)
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
