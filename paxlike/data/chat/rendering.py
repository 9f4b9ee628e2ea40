"""Renders a conversation with a template, and finds exactly what the model learns to write.

The template is rendered with marks around the content of every turn (`marks.py`). The result
without the marks must be what the template makes of the plain conversation. So the place of each
turn in the text is known, and a special token is one only outside of the turns: in a turn it is
text.

A turn of the assistant is learned from the end of the generation prompt, which is rendered for the
turns before it, to the first special token after its content: the end of the turn. A template with
`{% generation %}` blocks says itself what is learned.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from paxlike.data.chat.marks import after_last_turn, marked, meaning, without_marks
from paxlike.data.chat.messages import Message
from paxlike.data.chat.special_tokens import Special, SpecialTokens

Render = Callable[[Sequence[dict], bool], str]
"""(messages, whether the generation prompt follows) -> text."""


class TemplateError(Exception):
    """A conversation that a template cannot render, or whose learned part cannot be determined."""


class Part(NamedTuple):
    """A stretch of a rendered conversation: a special token, or text without any."""

    text: str
    special: Special | None
    predicted: bool


class _Scan(NamedTuple):
    """A rendered text without marks, and the places of what they showed."""

    text: str
    begins: dict[int, int]
    """Turn -> where its content begins. A turn whose beginning the template cuts off is missing."""
    ends: dict[int, int]
    generated: list[tuple[int, int]]
    specials: list[tuple[int, int, Special]]


def parts_of(messages: Sequence[Message], render: Render, known: SpecialTokens) -> list[Part]:
    """The rendered conversation. Raises TemplateError."""
    scan = _scanned(messages, render, known, prompt=False)
    find = _generated_spans if scan.generated else _derived_spans
    return _cut(scan, find(messages, scan, render, known))


def prompt_of(messages: Sequence[Message], render: Render, known: SpecialTokens) -> list[Part]:
    """The rendered conversation with the generation prompt. Raises TemplateError."""
    return _cut(_scanned(messages, render, known, prompt=True), [])


def _dicts(messages: Sequence[Message], with_marks: bool) -> list[dict]:
    return [
        {"role": one.role, "content": marked(n, one.content) if with_marks else one.content}
        for n, one in enumerate(messages, 1)
    ]


def _scanned(
    messages: Sequence[Message], render: Render, known: SpecialTokens, prompt: bool
) -> _Scan:
    scan = _scan(render(_dicts(messages, True), prompt), known)
    for number, message in enumerate(messages, 1):
        if number not in scan.ends:
            raise TemplateError(f"the template drops turn {number} ({message.role})")
        if number not in scan.begins and known.pattern.search(message.content):
            raise TemplateError(f"the template cuts turn {number}, which names a special token")
    if without_marks(render(_dicts(messages, False), prompt)) != scan.text:
        raise TemplateError("the template changes the text of a turn, so that its place is unknown")
    return scan


def _scan(rendered: str, known: SpecialTokens) -> _Scan:
    pieces: list[str] = []
    begins: dict[int, int] = {}
    ends: dict[int, int] = {}
    generated: list[tuple[int, int]] = []
    specials: list[tuple[int, int, Special]] = []
    place = done = 0
    inside, opened = False, 0
    for match in known.or_mark.finditer(rendered):
        pieces.append(rendered[done : match.start()])
        place, done = place + match.start() - done, match.end()
        if not match["mark"]:
            if not inside:
                specials.append((place, place + len(match[0]), known.tokens[match[0]]))
            pieces.append(match[0])
            place += len(match[0])
            continue
        kind, number = meaning(match[0])
        if kind == "generation begin":
            opened = place
        elif kind == "generation end":
            generated.append((opened, place))
        else:
            inside, places = kind == "begin", begins if kind == "begin" else ends
            if number in places:
                raise TemplateError(f"the template repeats turn {number}")
            places[number] = place
    return _Scan("".join([*pieces, rendered[done:]]), begins, ends, generated, specials)


def _end_of_turn(number: int, scan: _Scan) -> int:
    """Where the special token that ends a turn ends."""
    after = scan.ends[number]
    for begin, end, _ in scan.specials:
        if begin >= after:
            if not scan.text[after:begin].strip():
                return end
            break
    shown = scan.text[after : after + 30]
    raise TemplateError(
        f"no special token of the tokenizer ends turn {number} (assistant): after it comes "
        f"{shown!r}, so that a model would not learn to stop"
    )


def _derived_spans(
    messages: Sequence[Message], scan: _Scan, render: Render, known: SpecialTokens
) -> list[tuple[int, int]]:
    spans = []
    for number, message in enumerate(messages, 1):
        if not message.predicted:
            continue
        prompt = after_last_turn(render(_dicts(messages[: number - 1], True), True))
        last = max((end for end in scan.ends.values() if end < scan.ends[number]), default=0)
        begin, end = last + len(prompt), _end_of_turn(number, scan)
        if not scan.text.startswith(prompt, last):
            raise TemplateError(
                f"turn {number} (assistant) begins with {scan.text[last : last + 60]!r}, the "
                f"generation prompt of the template is {prompt[:60]!r}"
            )
        content = scan.begins.get(number, begin)
        if content < begin or any(begin <= place < content for place, _, _ in scan.specials):
            raise TemplateError(
                f"the generation prompt of the template, {prompt[-60:]!r}, does not end where turn "
                f"{number} (assistant) begins: {scan.text[last : content + 20]!r}. Does it read "
                "add_generation_prompt?"
            )
        spans.append((begin, end))
    return spans


def _generated_spans(
    messages: Sequence[Message], scan: _Scan, _: Render, __: SpecialTokens
) -> list[tuple[int, int]]:
    spans = []
    for number, message in enumerate(messages, 1):
        found = [span for span in scan.generated if span[0] < scan.ends[number] <= span[1]]
        if message.predicted and len(found) != 1:
            raise TemplateError(
                f"the template has {len(found)} generation blocks around turn {number} (assistant)"
            )
        if message.predicted:
            spans.append((found[0][0], max(found[0][1], _end_of_turn(number, scan))))
    return spans


def _cut(scan: _Scan, spans: list[tuple[int, int]]) -> list[Part]:
    starts = {begin: special for begin, _, special in scan.specials}
    edges = {0, len(scan.text), *itertools.chain.from_iterable(spans)}
    for begin, end, _ in scan.specials:
        edges |= {begin, end}
    parts = []
    for begin, end in itertools.pairwise(sorted(edges)):
        predicted = any(first <= begin and end <= last for first, last in spans)
        parts.append(Part(scan.text[begin:end], starts.get(begin), predicted))
    return parts
