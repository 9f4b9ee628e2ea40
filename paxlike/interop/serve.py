"""`paxlike serve`: OpenAI's completions over HTTP. The only file that uses Starlette and uvicorn.

GET /v1/models, GET /v1/models/NAME, POST /v1/completions, GET /health
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from paxlike.config import UserError
from paxlike.interop.completion import Asked, ProtocolError, parse
from paxlike.interop.completion_text import Piece, Text
from paxlike.interop.engine import Engine, Job

LARGEST_BODY = 2**24
BODY_SECONDS = 30
"""Maximum time to receive a request."""


class Server:
    """The HTTP application of an engine. name: the model's name."""

    def __init__(self, engine: Engine, name: str):
        self.engine, self.name, self.started = engine, name, int(time.time())
        errors: dict[Any, Any] = {
            ProtocolError: _protocol_error,
            HTTPException: _http_error,
            Exception: _server_error,
        }
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/health", self.health),
        ]
        self.app = Starlette(routes=routes, exception_handlers=errors)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) != self.name:
            raise ProtocolError(
                404,
                f"unknown model {name!r}; this server has {self.name!r}.",
                "model",
                "model_not_found",
            )
        return JSONResponse(self._card())

    def _card(self) -> dict:
        return {"id": self.name, "object": "model", "created": self.started, "owned_by": "paxlike"}

    async def health(self, _: Request) -> Response:
        running, waiting = self.engine.load
        values = {
            "status": "ok" if self.engine.alive else "stopped",
            "running": running,
            "waiting": waiting,
        }
        return JSONResponse(values, 200 if self.engine.alive else 503)

    async def completions(self, request: Request) -> Response:
        body = await _body(request)
        tokenizer = self.engine.trained.tokenizer
        # In a thread, because tokenizing a long prompt takes time.
        asked = await asyncio.to_thread(parse, body, self.name, tokenizer, self.engine.max_length)
        growing = _Growing(self.engine, asked)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.name,
        }
        if asked.stream:
            return StreamingResponse(growing.events(head), media_type="text/event-stream")
        return await growing.whole(head, request)


class _Growing:
    """The texts of one request during generation."""

    def __init__(self, engine: Engine, asked: Asked):
        self.asked, self.gone = asked, threading.Event()
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
            Job(prompt, asked.settings(index % asked.n), text, self.gone, lambda: put(None))
            for index, (prompt, text) in enumerate(zip(prompts, self.texts, strict=True))
        ]
        if not engine.submit(jobs):
            raise ProtocolError(
                503, "too many queued requests; retry in a second.", code="overloaded"
            )

    async def _each(self) -> AsyncGenerator[Piece, None]:
        left = len(self.texts)
        try:
            while left:
                piece = await self.pieces.get()
                if piece is None:
                    raise ProtocolError(500, "generation failed; see the server's log.")
                left -= piece["finish_reason"] is not None
                yield piece
        finally:
            self.gone.set()

    def _usage(self) -> dict:
        prompt, new = sum(map(len, self.asked.prompts)), sum(text.new_tokens for text in self.texts)
        return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

    async def events(self, head: dict) -> AsyncIterator[str]:
        """Server-sent events. If the client disconnects, Starlette cancels this, which ends the
        texts.
        """
        usage = {"usage": None} if self.asked.include_usage else {}
        try:
            async with contextlib.aclosing(self._each()) as pieces:
                async for piece in pieces:
                    yield f"data: {json.dumps({**head, 'choices': [piece], **usage})}\n\n"
            if self.asked.include_usage:
                yield f"data: {json.dumps({**head, 'choices': [], 'usage': self._usage()})}\n\n"
        except ProtocolError as error:
            yield f"data: {json.dumps(error.as_dict())}\n\n"
        finally:
            self.gone.set()
        yield "data: [DONE]\n\n"

    async def whole(self, head: dict, request: Request) -> Response:
        collecting, leaving = (
            asyncio.ensure_future(self._choices()),
            asyncio.ensure_future(_disconnected(request)),
        )
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=499)  # the client has disconnected
            return JSONResponse({**head, "choices": collecting.result(), "usage": self._usage()})
        finally:
            self.gone.set()
            for task in (collecting, leaving):
                task.cancel()

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


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > LARGEST_BODY:
                    raise ProtocolError(413, f"the body is larger than {LARGEST_BODY:,} bytes.")
                parts.append(part)
    except TimeoutError:
        raise ProtocolError(
            408, f"the body did not arrive within {BODY_SECONDS} seconds."
        ) from None
    except ClientDisconnect:
        raise ProtocolError(400, "the client left.") from None
    return b"".join(parts)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _protocol_error(_: Request, error: ProtocolError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    return JSONResponse(error.as_dict(), error.status, headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    described = ProtocolError(
        error.status_code, f"{request.method} {request.url.path}: {error.detail}."
    )
    return JSONResponse(described.as_dict(), error.status_code, error.headers)


async def _server_error(_: Request, __: Exception) -> Response:
    return JSONResponse(ProtocolError(500, "the server failed; see its log.").as_dict(), 500)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens at the address. port 0: any free port.

    Raises UserError if the port is out of range or in use, or the host is not known here.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port is {port}; it must be from 0 to {2**16 - 1}.")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at {host}:{port}: {reason}. Choose another --port or --host."
        ) from error


def run(engine: Engine, name: str, listening: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM. Texts in progress then have five seconds to finish."""
    app = Server(engine, name).app
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    try:
        uvicorn.Server(config).run([listening])
    finally:
        engine.close()
