"""`paxlike serve`: OpenAI's completions and chat completions over HTTP. The only file that uses
Starlette and uvicorn.

GET /v1/models, GET /v1/models/NAME, POST /v1/completions, POST /v1/chat/completions, GET /health,
GET /metrics
"""

import asyncio
import hmac
import socket
import time
from collections.abc import Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from paxlike.config import UserError
from paxlike.data.chat.template import ChatTemplate
from paxlike.interop.chat_completion import parse_chat
from paxlike.interop.completion import Asked, ProtocolError, parse, unknown_model
from paxlike.interop.engine import Engine
from paxlike.interop.growing import Growing, Shape, chat_shape, completion_shape
from paxlike.interop.serve_metrics import CONTENT_TYPE, ServerMetrics

_ENDPOINTS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics")
"""Paths that are counted by name."""
LARGEST_BODY = 2**24
BODY_SECONDS = 30
"""Maximum time to receive a request."""


class Server:
    """The HTTP application of an engine.

    names: of the model, and of its adapters in the order of their numbers. template: of chats; None
    if the model has none. api_key: what requests to /v1 must have; "" for none.
    """

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        template: ChatTemplate | None = None,
        api_key: str = "",
    ):
        self.engine, self.names, self.started = engine, tuple(names), int(time.time())
        self.template, self.metrics = template, ServerMetrics()
        errors: dict[Any, Any] = {
            ProtocolError: _protocol_error,
            HTTPException: _http_error,
            Exception: _server_error,
        }
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.shown_metrics),
        ]
        app = Starlette(routes=routes, exception_handlers=errors)
        self.app = Gate(app, self.metrics, api_key)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.names]})

    async def model(self, request: Request) -> Response:
        if (name := request.path_params["name"]) not in self.names:
            raise unknown_model(name, self.names)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict:
        card = {"id": name, "object": "model", "created": self.started, "owned_by": "paxlike"}
        return card if name == self.names[0] else {**card, "parent": self.names[0]}

    async def health(self, _: Request) -> Response:
        running, waiting = self.engine.load
        values = {
            "status": "ok" if self.engine.alive else "stopped",
            "running": running,
            "waiting": waiting,
        }
        return JSONResponse(values, 200 if self.engine.alive else 503)

    async def shown_metrics(self, _: Request) -> Response:
        return Response(self.metrics.text(*self.engine.load), media_type=CONTENT_TYPE)

    async def completions(self, request: Request) -> Response:
        body = await _body(request)
        tokenizer = self.engine.trained.tokenizer
        # In a thread, because tokenizing a long prompt takes time.
        asked = await asyncio.to_thread(parse, body, self.names, tokenizer, self.engine.max_length)
        return await self._answer(request, asked, completion_shape())

    async def chat(self, request: Request) -> Response:
        body = await _body(request)
        limit = self.engine.max_length
        asked = await asyncio.to_thread(parse_chat, body, self.names, self.template, limit)
        return await self._answer(request, asked, chat_shape(asked.logprobs))

    async def _answer(self, request: Request, asked: Asked, shape: Shape) -> Response:
        path = request.url.path
        growing = Growing(self.engine, self.names, asked, shape, self.metrics, path)
        head = {"created": int(time.time()), "model": asked.model}
        if asked.stream:
            return StreamingResponse(growing.events(head), media_type="text/event-stream")
        collecting, leaving = (
            asyncio.ensure_future(growing.whole(head)),
            asyncio.ensure_future(_disconnected(request)),
        )
        try:
            await asyncio.wait({collecting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=499)  # the client has disconnected
            return JSONResponse(collecting.result())
        finally:
            growing.gone.set()
            for task in (collecting, leaving):
                task.cancel()


class Gate:
    """Counts every request, and refuses those to /v1 without the API key."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, api_key: str):
        self._app, self._metrics, self._key = app, metrics, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), 499  # unless an answer begins

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            allowed = self._allows(scope)
            await (self._app if allowed else _unauthorized())(scope, receive, noted)
        finally:
            path = scope["path"]
            endpoint = path if path in _ENDPOINTS else "other"
            self._metrics.requests[endpoint, status] += 1
            self._metrics.latency.add(endpoint, time.monotonic() - begin)

    def _allows(self, scope: Scope) -> bool:
        if not self._key or not scope["path"].startswith("/v1"):
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)


def _unauthorized() -> Response:
    error = ProtocolError(
        401,
        "the API key is missing or wrong; send it as `Authorization: Bearer KEY`.",
        code="invalid_api_key",
    )
    return JSONResponse(error.as_dict(), 401, {"WWW-Authenticate": "Bearer"})


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


def run(
    engine: Engine,
    names: Sequence[str],
    listening: socket.socket,
    template: ChatTemplate | None = None,
    api_key: str = "",
) -> None:
    """Serves until SIGINT or SIGTERM. Texts in progress then have five seconds to finish."""
    app = Server(engine, names, template, api_key).app
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    try:
        uvicorn.Server(config).run([listening])
    finally:
        engine.close()
