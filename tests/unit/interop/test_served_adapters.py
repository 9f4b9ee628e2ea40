"""One server for a base and its adapters: the request's model selects, and bad input is named."""

import dataclasses
import http.client
import importlib.util
import json
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import host_params, model_config, numerics_of

from paxlike.adapt.fingerprint import fingerprint
from paxlike.config import AdaptConfig, Config, InitConfig, UserError, to_json
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.infer.generate import Generator
from paxlike.interop.served_adapters import add_adapters
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.loaded_run import load_run
from paxlike.training.run_directory import read_config
from paxlike.training.state import abstract_trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")),
        reason="starlette and uvicorn are not installed (extra serve)",
    ),
]
LORA = AdaptConfig("lora", rank=4, alpha=16.0)
PREFIX = AdaptConfig("prefix", prefix_length=3, prefix_hidden=0)


def write_run(config: Config, folder: Path, params: dict) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    BytesTokenizer().save(folder / "tokenizer")
    write_checkpoint(folder / "checkpoints", {"params": params}, 0, {"step": 0})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs base, lora and prefix."""
    folder = tmp_path_factory.mktemp("runs")
    config = dataclasses.replace(model_config(vocab_size=270), name="base")
    base, random = host_params(config), np.random.default_rng(4)
    base["embedding_VD"] *= 0.05
    write_run(config, folder / "base", base)
    trained = load_run(folder / "base")
    with jax.set_mesh(trained.mesh):
        mark = fingerprint(trained.params)
        for name, adapt in (("lora", LORA), ("prefix", PREFIX)):
            own = dataclasses.replace(
                config, name=name, adapt=adapt, init=InitConfig(str(folder / "base"))
            )
            like = abstract_trained(own, numerics_of(own))
            values = jax.tree.map(
                lambda x: (0.5 * random.standard_normal(x.shape)).astype(np.float32), like
            )
            write_run(own, folder / name, values)
            record = {"path": str(folder / "base"), "fingerprint": mark}
            (folder / name / "base.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def address(runs):
    import uvicorn

    from paxlike.interop.engine import Engine
    from paxlike.interop.serve import Server

    given = [f"mine={runs / 'lora'}", f"yours={runs / 'prefix'}"]
    trained, names = add_adapters(load_run(runs / "base"), "base", given)
    engine = Engine(trained, 4, 16)
    listening = socket.create_server(("127.0.0.1", 0))
    app = Server(engine, ["base", *names]).app
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    yield listening.getsockname()
    running.should_exit = True
    thread.join(20)
    engine.close()


def ask(address, method: str, path: str, body: dict | None = None) -> tuple[int, dict]:
    connection = http.client.HTTPConnection(*address, timeout=120)
    connection.request(method, path, json.dumps(body) if body else None)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def alone(folder: Path, prompt: str) -> str:
    run = load_run(folder)
    with jax.set_mesh(run.mesh):
        generator = Generator(run.config.model, run.numerics, run.params, run.tokenizer.eod, 64)
        (new,) = generator.generate([run.tokenizer.encode(prompt)], 8)
    return run.tokenizer.decode(new)


def test_the_model_of_a_request_selects_the_adapter(address, runs):
    expected = {"base": runs / "base", "mine": runs / "lora", "yours": runs / "prefix"}

    def text(name: str) -> str:
        body = {"model": name, "prompt": "abc", "max_tokens": 8, "temperature": 0}
        status, told = ask(address, "POST", "/v1/completions", body)
        assert status == 200 and told["model"] == name
        return told["choices"][0]["text"]

    with ThreadPoolExecutor(3) as pool:
        found = dict(zip(expected, pool.map(text, expected), strict=True))
    assert found == {name: alone(folder, "abc") for name, folder in expected.items()}
    assert len(set(found.values())) == 3
    _, listed = ask(address, "GET", "/v1/models")
    assert [(one["id"], one.get("parent")) for one in listed["data"]] == [
        ("base", None), ("mine", "base"), ("yours", "base"),
    ]  # fmt: skip
    status, told = ask(address, "POST", "/v1/completions", {"model": "other", "prompt": "a"})
    assert status == 404 and "this server has 'base', 'mine', 'yours'" in told["error"]["message"]


def test_what_does_not_fit_is_named(runs, tmp_path):
    trained = load_run(runs / "base")

    def refused(*given: str, match: str) -> None:
        with pytest.raises(UserError, match=match):
            add_adapters(trained, "base", given)

    lora = runs / "lora"
    refused("lora", match="--adapter has 'lora'; write NAME=PATH")
    refused(f"a={lora}", f"a={lora}", match="two models are named a;")
    refused(f"base={lora}", match="two models are named base;")
    refused(f"a={runs / 'base'}", match="has no adapter; serve it by itself")
    other = shutil.copytree(lora, tmp_path / "other")
    record = json.loads((other / "base.json").read_text())
    (other / "base.json").write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    refused(f"a={other}", match="was trained on another base")
    larger = shutil.copytree(lora, tmp_path / "larger")
    own = read_config(larger)
    model = dataclasses.replace(own.model, rope_theta=5.0)
    (larger / "config.json").write_text(to_json(dataclasses.replace(own, model=model)))
    refused(f"a={larger}", match="another model than the served run base")
