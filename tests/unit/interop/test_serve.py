"""The endpoint over real sockets: the protocol, many clients at once, and clients that are slow or
gone.
"""

import concurrent.futures
import http.client
import importlib.util
import json
import socket
import threading
import time

import jax
import numpy as np
import pytest
from helpers import host_params, mesh_of, numerics_of, place
from interop_cases import case, expected_logits

from paxlike.config import UserError
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.infer.generate import Generator
from paxlike.training.loaded_run import LoadedRun

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")),
    reason="starlette and uvicorn are not installed (extra serve)",
)
CONFIG = case()
ROWS, WAITING = 4, 64


@pytest.fixture(scope="module")
def trained():
    mesh = mesh_of(1, 1, 2)
    with jax.set_mesh(mesh):
        params = place(CONFIG, host_params(CONFIG))
    return LoadedRun(CONFIG, numerics_of(CONFIG), params, 0, BytesTokenizer(), mesh)


@pytest.fixture(scope="module")
def server(trained):
    """(host, port, engine) of a server in a thread of its own."""
    import uvicorn

    from paxlike.interop.engine import Engine
    from paxlike.interop.serve import Server

    engine = Engine(trained, ROWS, WAITING)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        Server(engine, ["mine"]).app, log_level="warning", timeout_graceful_shutdown=1
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    yield (*listening.getsockname(), engine)
    running.should_exit = True
    thread.join(20)
    engine.close()
    assert not thread.is_alive()


def ask(server, body, path="/v1/completions", method="POST"):
    connection = http.client.HTTPConnection(server[0], server[1], timeout=60)
    connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, json.loads(text) if answer.headers[
        "content-type"
    ] == "application/json" else text


def events(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def alone(trained, prompt: str, tokens: int) -> str:
    with jax.set_mesh(trained.mesh):
        generator = Generator(CONFIG.model, trained.numerics, trained.params, 1, 64)
        (new,) = generator.generate([trained.tokenizer.encode(prompt)], tokens)
    return trained.tokenizer.decode(new)


def until(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_completion_is_the_models(server, trained):
    status, told = ask(
        server, {"model": "mine", "prompt": "abc", "max_tokens": 8, "temperature": 0}
    )
    assert status == 200 and told["object"] == "text_completion" and told["model"] == "mine"
    (choice,) = told["choices"]
    assert (
        choice["text"] == alone(trained, "abc", 8)
        and choice["index"] == 0
        and choice["logprobs"] is None
    )
    assert choice["finish_reason"] in ("length", "stop")
    usage = told["usage"]
    assert usage["prompt_tokens"] == 3 and usage["total_tokens"] == 3 + usage["completion_tokens"]


@pytest.mark.parametrize(
    "body", [rb'{"prompt": "a\ud800"}', b"[" * 200_000, b'{"prompt": [1e999]}']
)
def test_bad_bodies_are_the_clients_fault(server, body):
    status, told = ask(server, body)
    assert status == 400 and told["error"]["type"] == "invalid_request_error"


def test_top_p_0_takes_the_most_likely_token_and_null_draws_a_seed(server, trained):
    body = {"prompt": "abc", "max_tokens": 8, "temperature": 1.5, "top_p": 0, "model": None}
    assert ask(server, body)[1]["choices"][0]["text"] == alone(trained, "abc", 8)
    body = {"prompt": "abc", "max_tokens": 16, "temperature": 2, "seed": None}
    texts = {ask(server, body)[1]["choices"][0]["text"] for _ in range(4)}
    assert len(texts) > 1


def test_addresses_that_cannot_be_listened_at(server):
    from paxlike.interop.serve import listen

    with pytest.raises(UserError, match="--port is 99999; it must be from 0 to 65535"):
        listen("127.0.0.1", 99_999)
    with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{server[1]}: .*in use"):
        listen("127.0.0.1", server[1])
    with pytest.raises(UserError, match="cannot listen at no.such.host.invalid:8000"):
        listen("no.such.host.invalid", 8000)
    with listen("127.0.0.1", 0) as free:
        assert free.getsockname()[1] > 0


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echoed_prompt_has_the_models_logprobs(server, max_tokens):
    """As tools ask for the likelihood of a text."""
    tokens = BytesTokenizer().encode("the prompt").tolist()
    logits = expected_logits(CONFIG, tokens=np.array(tokens))
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    body = {
        "prompt": tokens,
        "echo": True,
        "logprobs": 2,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    status, told = ask(server, body)
    (choice,) = told["choices"]
    assert status == 200 and choice["text"].startswith("the prompt")
    assert told["usage"]["prompt_tokens"] == 10 and told["usage"]["completion_tokens"] == max_tokens
    found = choice["logprobs"]
    assert (
        len(found["token_logprobs"])
        == len(found["tokens"])
        == len(found["text_offset"])
        == 10 + max_tokens
    )
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    expected = logprobs[np.arange(9), tokens[1:]]
    assert found["token_logprobs"][1:10] == pytest.approx(expected.tolist(), abs=1e-3)
    for number, top in enumerate(found["top_logprobs"][1:10]):
        likely = np.sort(logprobs[number])[-2:].tolist()
        assert sorted(top.values())[-2:] == pytest.approx(likely, abs=1e-3)
        assert min(top.values()) == pytest.approx(min(*likely, expected[number]), abs=1e-3)
    assert found["text_offset"][:10] == list(range(10))
    _, streamed = ask(server, {**body, "stream": True})
    assert "".join(one["choices"][0]["text"] for one in events(streamed)) == choice["text"]


def test_prompts_and_choices_of_one_request(server):
    body = {"prompt": ["ab", "cd"], "n": 2, "max_tokens": 5, "seed": 3}
    (_, one), (_, other) = ask(server, body), ask(server, body)
    texts = [choice["text"] for choice in one["choices"]]
    assert [choice["index"] for choice in one["choices"]] == [0, 1, 2, 3]
    assert texts == [choice["text"] for choice in other["choices"]] and len(set(texts)) > 1
    (_, unseeded), (_, again) = (
        ask(server, {"prompt": "ab", "n": 3}),
        ask(server, {"prompt": "ab", "n": 3}),
    )
    assert unseeded["choices"] != again["choices"]


def test_a_stream_is_the_same_text(server):
    body = {"prompt": "xyz", "max_tokens": 12, "temperature": 0, "logprobs": 2}
    _, whole = ask(server, body)
    status, text = ask(server, {**body, "stream": True, "stream_options": {"include_usage": True}})
    told = events(text)
    assert status == 200 and told[-1]["choices"] == [] and told[-1]["usage"] == whole["usage"]
    pieces = [one["choices"][0] for one in told[:-1]]
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
    assert pieces[-1]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len({one["id"] for one in told}) == 1 and told[0]["usage"] is None
    logprobs = whole["choices"][0]["logprobs"]
    assert [t for piece in pieces for t in piece["logprobs"]["tokens"]] == logprobs["tokens"]
    assert len(logprobs["token_logprobs"]) == whole["usage"]["completion_tokens"]
    assert all(
        max(top.values()) == pytest.approx(p)
        for top, p in zip(logprobs["top_logprobs"], logprobs["token_logprobs"], strict=True)
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/completions", "{", 400, "not valid JSON"),
        ("POST", "/v1/completions", {"prompt": "x", "max_tokens": -1}, 400, "max_tokens is -1"),
        (
            "POST",
            "/v1/completions",
            {"prompt": "x", "model": "gpt"},
            404,
            "unknown model 'gpt'",
        ),
        ("POST", "/v1/chat/completions", {"messages": []}, 400, "has no chat template"),
        ("POST", "/v1/chat", {"messages": []}, 404, "Not Found"),
        ("GET", "/v1/completions", "", 405, "Method Not Allowed"),
        ("GET", "/v1/models/gpt", "", 404, "unknown model 'gpt'"),
        ("POST", "/v1/completions", "x" * (2**24 + 1), 413, "larger than"),
    ],
)
def test_error_objects(method, path, body, status, message, server):
    found, told = ask(server, body, path, method)
    assert found == status and set(told) == {"error"} and message in told["error"]["message"]
    assert (
        set(told["error"]) == {"message", "type", "param", "code"}
        and told["error"]["type"] == "invalid_request_error"
    )


def test_models_and_health(server):
    status, told = ask(server, "", "/v1/models", "GET")
    assert status == 200 and [model["id"] for model in told["data"]] == ["mine"]
    assert ask(server, "", "/v1/models/mine", "GET")[1] == told["data"][0]
    assert ask(server, "", "/health", "GET") == (200, {"status": "ok", "running": 0, "waiting": 0})


def test_many_clients_at_once(server, trained):
    """Forty clients, a third of them streaming, on four rows: every one gets the text that it would
    get alone.
    """
    words = ["alpha", "be", "c", "delta epsilon"]
    expected = [alone(trained, word, 10) for word in words]

    def client(number: int) -> str:
        body = {
            "prompt": words[number % 4],
            "max_tokens": 10,
            "temperature": 0,
            "stream": number % 3 == 0,
        }
        status, told = ask(server, body)
        assert status == 200
        return (
            "".join(e["choices"][0]["text"] for e in events(told))
            if body["stream"]
            else told["choices"][0]["text"]
        )

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        found = list(pool.map(client, range(40), timeout=120))
    assert found == [expected[number % 4] for number in range(40)]
    assert until(lambda: server[2].load == (0, 0))


def test_too_many_are_refused_and_the_others_served(server, monkeypatch):
    monkeypatch.setattr(server[2], "max_queued", 20)
    bodies = [{"prompt": "a", "n": 16, "max_tokens": 20, "temperature": 0} for _ in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: ask(server, body), bodies, timeout=120))
    served = [told for status, told in answers if status == 200]
    refused = [told for status, told in answers if status == 503]
    assert (
        served
        and len(served) + len(refused) == 8
        and all(len(told["choices"]) == 16 for told in served)
    )
    assert refused and all(told["error"]["code"] == "overloaded" for told in refused)


def raw(server, body: dict) -> socket.socket:
    text = json.dumps(body)
    client = socket.create_connection(server[:2], timeout=30)
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        + f"Content-Length: {len(text)}\r\n\r\n{text}".encode()
    )
    return client


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_give_their_rows_back(stream, server, monkeypatch):
    """Each of their 32 texts would be sixty steps; once they are known to be gone, the rows are
    free at the next one.
    """
    engine, steps, left = server[2], [], threading.Event()
    step = engine._slots.step

    def counted():
        steps.append(1)
        if len(steps) == 1:
            # The engine waits here, so these are the rows of the client that leaves.
            assert left.wait(20) and until(
                lambda: all(job.gone.is_set() for job in engine._busy.values())
            )
        return step()

    monkeypatch.setattr(engine._slots, "step", counted)
    client = raw(
        server, {"prompt": "a", "n": 32, "max_tokens": 60, "temperature": 0, "stream": stream}
    )
    assert until(lambda: steps) and engine.load[0] == ROWS
    client.close()
    left.set()
    status, _ = ask(server, {"prompt": "b", "max_tokens": 2})
    assert status == 200 and until(lambda: engine.load == (0, 0))
    assert len(steps) < 15


def test_clients_that_do_not_read_stop_nobody(server):
    slow = [
        raw(server, {"prompt": "a", "max_tokens": 60, "temperature": 0, "stream": True, "n": 8})
        for _ in range(3)
    ]
    half = socket.create_connection(server[:2], timeout=30)
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    status, told = ask(server, {"prompt": "b", "max_tokens": 3, "temperature": 0})
    assert status == 200 and told["usage"]["completion_tokens"] <= 3
    for client in (*slow, half):
        client.close()
    assert until(lambda: server[2].load == (0, 0))


def test_an_engine_that_fails_says_so(trained):
    from paxlike.interop.completion import Asked
    from paxlike.interop.completion_text import Text
    from paxlike.interop.engine import Engine, Job

    engine, failed = Engine(trained, 1, 4), threading.Event()

    def broken(_):
        raise RuntimeError("broken")

    asked = Asked([[5]], 4, 0, 1, 1, False, False, None, (), 0)
    job = Job(
        [5],
        asked.settings(0),
        0,
        Text(0, asked, trained.tokenizer, broken),
        threading.Event(),
        failed.set,
    )
    assert engine.submit([job]) and failed.wait(60) and until(lambda: not engine.alive)
    assert not engine.submit([job])
    engine.close()
