"""The texts of one request during generation, as a whole answer or as server-sent events."""

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import NamedTuple

from paxlike.interop.chat_completion import chat_choice, chat_delta
from paxlike.interop.completion import Asked, ProtocolError
from paxlike.interop.completion_text import Piece, Text
from paxlike.interop.engine import Engine, Job
from paxlike.interop.serve_metrics import ServerMetrics


class Shape(NamedTuple):
    """How a protocol writes its answers."""

    prefix: str
    """Of ids."""
    kind: str
    chunk_kind: str
    choice: Callable[[dict], dict]
    """A choice of a whole answer."""
    delta: Callable[[dict, bool], dict]
    """(new output, whether it begins a text) -> a choice of a chunk."""


def completion_shape() -> Shape:
    kind = "text_completion"
    return Shape("cmpl", kind, kind, lambda choice: choice, lambda piece, _: piece)


def chat_shape(logprobs: int | None) -> Shape:
    return Shape(
        "chatcmpl",
        "chat.completion",
        "chat.completion.chunk",
        lambda choice: chat_choice(choice, logprobs),
        lambda piece, first: chat_delta(piece, first, logprobs),
    )


class Growing:
    """The texts of one request during generation."""

    def __init__(
        self,
        engine: Engine,
        models: Sequence[str],
        asked: Asked,
        shape: Shape,
        metrics: ServerMetrics,
        endpoint: str,
    ):
        """models: names of the base and its adapters, in the order of their numbers."""
        self.asked, self.shape, self.gone = asked, shape, threading.Event()
        self._metrics, self._endpoint, self._begin = metrics, endpoint, time.monotonic()
        self._id = f"{shape.prefix}-{uuid.uuid4().hex}"
        loop = asyncio.get_running_loop()
        self.pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

        def put(piece: Piece | None) -> None:
            # Called by the engine's thread. The queue has at most max_tokens pieces per text.
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server is stopping
                loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

        prompts = [prompt for prompt in asked.prompts for _ in range(asked.n)]
        tokenizer = engine.trained.tokenizer
        self.texts = [
            Text(index, asked, tokenizer, put, prompt) for index, prompt in enumerate(prompts)
        ]
        jobs = [
            Job(
                prompt,
                asked.settings(index % asked.n),
                models.index(asked.model),
                text,
                self.gone,
                lambda: put(None),
            )
            for index, (prompt, text) in enumerate(zip(prompts, self.texts, strict=True))
        ]
        if not engine.submit(jobs):
            raise ProtocolError(
                503, "too many queued requests; retry in a second.", code="overloaded"
            )

    async def _each(self) -> AsyncGenerator[Piece, None]:
        left, waiting = len(self.texts), True
        try:
            while left:
                piece = await self.pieces.get()
                if waiting and piece is not None:
                    waiting = False
                    since = time.monotonic() - self._begin
                    self._metrics.first_text.add(self._endpoint, since)
                if piece is None:
                    raise ProtocolError(500, "generation failed; see the server's log.")
                left -= piece["finish_reason"] is not None
                yield piece
        finally:
            self.gone.set()
            usage = self._usage()
            self._metrics.prompt_tokens += usage["prompt_tokens"]
            self._metrics.new_tokens += usage["completion_tokens"]

    def _usage(self) -> dict:
        prompt, new = sum(map(len, self.asked.prompts)), sum(text.new_tokens for text in self.texts)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    async def events(self, head: dict) -> AsyncIterator[str]:
        """Server-sent events. If the client disconnects, Starlette cancels this, which ends the
        texts.
        """
        usage = {"usage": None} if self.asked.include_usage else {}
        head, begun = self._head(head, self.shape.chunk_kind), set()
        try:
            async with contextlib.aclosing(self._each()) as pieces:
                async for piece in pieces:
                    choice = self.shape.delta(piece, piece["index"] not in begun)
                    begun.add(piece["index"])
                    yield f"data: {json.dumps({**head, 'choices': [choice], **usage})}\n\n"
            if self.asked.include_usage:
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': self._usage()})}\n\n"
        except ProtocolError as error:
            yield f"data: {json.dumps(error.as_dict())}\n\n"
        finally:
            self.gone.set()
        yield "data: [DONE]\n\n"

    async def whole(self, head: dict) -> dict:
        """The answer to a request that is not streamed."""
        choices = [self.shape.choice(choice) for choice in await self._choices()]
        return {**self._head(head, self.shape.kind), "choices": choices, "usage": self._usage()}

    def _head(self, head: dict, kind: str) -> dict:
        return {"id": self._id, "object": kind, **head}

    async def _choices(self) -> list[dict]:
        choices = [
            {"index": n, "text": "", "logprobs": None, "finish_reason": None}
            for n in range(len(self.texts))
        ]
        async for piece in self._each():
            choice = choices[piece["index"]]
            choice["text"] += piece["text"]
            choice["finish_reason"] = piece["finish_reason"]
            for name, values in (piece["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {name: [] for name in piece["logprobs"]}
                choice["logprobs"][name] += values
        return choices
