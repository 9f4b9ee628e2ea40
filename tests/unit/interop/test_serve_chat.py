"""Chat completions, API keys and metrics over real sockets."""

import http.client
import importlib.util
import json
import re
import socket
import threading

import jax
import pytest
from helpers import host_params, mesh_of, numerics_of, place
from interop_cases import case

from paxlike.data.chat.messages import Message
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.chat.template import ChatTemplate
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.infer.generate import Generator
from paxlike.training.loaded_run import LoadedRun

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")),
    reason="starlette and uvicorn are not installed (extra serve)",
)
CONFIG, KEY = case(), "sk-secret"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
TEMPLATE = ChatTemplate("plain", NAMED_TEMPLATES["plain"], BytesTokenizer())


@pytest.fixture(scope="module")
def trained():
    mesh = mesh_of(1, 1, 2)
    with jax.set_mesh(mesh):
        params = place(CONFIG, host_params(CONFIG))
    return LoadedRun(CONFIG, numerics_of(CONFIG), params, 0, BytesTokenizer(), mesh)


@pytest.fixture(scope="module")
def greedy(trained):
    """The ids of the most likely answer, and its longest possible length."""
    prompt = TEMPLATE.prompt([Message(one["role"], one["content"], False) for one in ASKED])
    with jax.set_mesh(trained.mesh):
        generator = Generator(CONFIG.model, trained.numerics, trained.params, 1, 64)
        (new,) = generator.generate([prompt], 64 - len(prompt))
    return new.tolist()


@pytest.fixture(scope="module")
def server(trained):
    import uvicorn

    from paxlike.interop.engine import Engine
    from paxlike.interop.serve import Server

    engine = Engine(trained, 4, 64)
    made = Server(engine, ["mine"], TEMPLATE, KEY)
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(made.app, log_level="warning", timeout_graceful_shutdown=1)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    made.address = listening.getsockname()
    yield made
    running.should_exit = True
    thread.join(20)
    engine.close()


def ask(server, body=None, path="/v1/chat/completions", method="POST", key=f"Bearer {KEY}"):
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    headers = {"Authorization": key} if key else {}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    is_json = answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(text) if is_json else text, answer.headers


def events(text: str) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_an_answer_continues_the_rendered_prompt(server, greedy):
    body = {"model": "mine", "messages": ASKED, "temperature": 0}
    status, told, _ = ask(server, body)
    assert status == 200 and told["object"] == "chat.completion"
    assert told["id"].startswith("chatcmpl-") and told["model"] == "mine"
    (choice,) = told["choices"]
    expected = BytesTokenizer().decode(greedy)
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    prompt = "System:\nBe brief.\n\nUser:\nHello\n\nAssistant:\n"
    usage = told["usage"]
    assert choice["finish_reason"] == ("length" if len(prompt + expected) == 64 else "stop")
    assert usage["prompt_tokens"] == len(prompt)
    assert usage["completion_tokens"] == len(greedy)
    assert ask(server, {**body, "max_completion_tokens": 3})[1]["usage"]["completion_tokens"] == 3


def test_a_stream_is_the_same_answer(server):
    body = {"messages": ASKED, "temperature": 0, "n": 2, "logprobs": True, "top_logprobs": 2}
    _, whole, _ = ask(server, body)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    told = events(ask(server, body)[1])
    assert told[-1]["choices"] == [] and told[-1]["usage"] == whole["usage"]
    assert {one["object"] for one in told} == {"chat.completion.chunk"}
    for index in (0, 1):
        pieces = [c for one in told for c in one["choices"] if c["index"] == index]
        assert [piece["delta"].get("role") for piece in pieces] == [
            "assistant", *[None] * (len(pieces) - 1)
        ]  # fmt: skip
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        choice = whole["choices"][index]
        assert text == choice["message"]["content"]
        assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        content = [one for piece in pieces for one in piece["logprobs"]["content"]]
        assert content == choice["logprobs"]["content"]
        for one in content:
            best = one["top_logprobs"]
            assert len(best) == 2 and best[0]["logprob"] >= best[1]["logprob"]
            assert best[0]["logprob"] == pytest.approx(one["logprob"])  # the most likely token


def test_the_end_of_a_turn_ends_an_answer(server, greedy, monkeypatch):
    class Stopping(ChatTemplate):
        stops = (greedy[2],)

    monkeypatch.setattr(
        server, "template", Stopping(TEMPLATE.name, TEMPLATE.source, TEMPLATE.tokenizer)
    )
    end = greedy.index(greedy[2])
    assert end == 2
    _, told, _ = ask(server, {"messages": ASKED, "temperature": 0})
    (choice,) = told["choices"]
    assert choice["finish_reason"] == "stop" and told["usage"]["completion_tokens"] == end
    assert choice["message"]["content"] == BytesTokenizer().decode(greedy[:end])
    # A completion is no turn.
    prompt = TEMPLATE.prompt([Message(one["role"], one["content"], False) for one in ASKED])
    body = {"prompt": prompt, "temperature": 0, "max_tokens": 8}
    assert ask(server, body, "/v1/completions")[1]["usage"]["completion_tokens"] == 8


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"messages": None}, "'messages' is of type NoneType", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "has the role 'robot'", "messages"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "x"}]}, "last turn", "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "turn 1 (user) has no text", "messages"),
        ({"messages": [{"role": "user", "content": "x" * 70}]}, "context is 64", "messages"),
        ({"max_tokens": 60}, "max_tokens is 60", "messages"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "differ", "max_tokens"),
        ({"tools": [{"type": "function"}]}, "tools is not supported", "tools"),
        ({"top_logprobs": 2}, "needs logprobs", "top_logprobs"),
        ({"prompt": "x"}, "prompt is not supported", "prompt"),
    ],
)
def test_bad_requests(fields, message, param, server):
    status, told, _ = ask(server, {"messages": ASKED, **fields})
    assert status == 400 and message in told["error"]["message"]
    assert told["error"]["param"] == param and told["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("key", ["", "Bearer sk-secre", "Bearer sk-secret2", KEY, "Basic x"])
def test_a_key_is_needed(key, server):
    for path in ("/v1/chat/completions", "/v1/completions"):
        status, told, headers = ask(server, {"messages": ASKED, "prompt": "x"}, path, key=key)
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert told["error"]["code"] == "invalid_api_key"
        assert set(told["error"]) == {"message", "type", "param", "code"}
    assert ask(server, None, "/v1/models", "GET", key)[0] == 401
    assert ask(server, None, "/health", "GET", key)[0] == 200
    assert ask(server, None, "/v1/models", "GET", f"bearer {KEY}")[0] == 200


def scraped(server) -> dict[str, float]:
    status, text, headers = ask(server, None, "/metrics", "GET", "")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            assert re.fullmatch(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+', line)
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def test_metrics(server):
    before = scraped(server)
    _, told, _ = ask(server, {"messages": ASKED, "max_tokens": 4})
    ask(server, {"messages": ASKED, "max_tokens": 4, "stream": True})
    ask(server, {"messages": []})
    ask(server, None, "/nowhere?x=1", "GET")
    after = scraped(server)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0)

    chat = 'endpoint="/v1/chat/completions"'
    assert more(f'paxlike_requests_total{{{chat},status="200"}}') == 2
    assert more(f'paxlike_requests_total{{{chat},status="400"}}') == 1
    assert more('paxlike_requests_total{endpoint="other",status="404"}') == 1
    assert more("paxlike_prompt_tokens_total") == 2 * told["usage"]["prompt_tokens"]
    assert 2 <= more("paxlike_generated_tokens_total") <= 8
    assert more(f"paxlike_request_seconds_count{{{chat}}}") == 3
    assert more(f'paxlike_request_seconds_bucket{{{chat},le="+Inf"}}') == 3
    assert more(f"paxlike_first_text_seconds_count{{{chat}}}") == 2
    buckets = [
        v for k, v in after.items() if k.startswith(f"paxlike_request_seconds_bucket{{{chat}")
    ]
    assert buckets == sorted(buckets)
    assert after["paxlike_running_texts"] == after["paxlike_queued_texts"] == 0


@pytest.mark.optional("openai")
def test_the_openai_client(server, greedy):
    import openai

    url = f"http://{server.address[0]}:{server.address[1]}/v1"
    client = openai.OpenAI(api_key=KEY, base_url=url, max_retries=0)
    asked = {"model": "mine", "messages": ASKED, "temperature": 0}
    expected = BytesTokenizer().decode(greedy)
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
    assert whole.choices[0].message.content == expected
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert client.models.list().data[0].id == "mine"
    with pytest.raises(openai.AuthenticationError, match="API key"):
        openai.OpenAI(api_key="no", base_url=url, max_retries=0).models.list()
    with pytest.raises(openai.BadRequestError, match="robot"):
        client.chat.completions.create(model="mine", messages=[{"role": "robot", "content": "x"}])


def test_completions_need_no_template(server, monkeypatch):
    monkeypatch.setattr(server, "template", None)
    status, told, _ = ask(server, {"messages": ASKED})
    assert status == 400 and "has no chat template" in told["error"]["message"]
    assert ask(server, {"prompt": "x", "max_tokens": 1}, "/v1/completions")[0] == 200
