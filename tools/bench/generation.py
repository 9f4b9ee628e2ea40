"""Generation: tokens/s beside Hugging Face's `generate` on the same weights, and what a token costs as a text grows.

    python -m tools.bench.generation [--size test] [--json FILE]      with torch and transformers (extra bench)

Greedy, in float32, whole prompts of one length; both libraries read them and make as many tokens, and must make the same ones. Without
transformers the rows have nothing beside them, and say so.
"""

import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from paxlike.config import Config, to_json
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.infer.generate import LENGTH_MULTIPLE, Generator, rounded_up
from paxlike.interop.hf import to_hf
from paxlike.models.palm import init_params
from paxlike.train.checkpoint import write_checkpoint
from tools.bench import reference
from tools.bench.measure import Row, Taken, command, take_turns

NO_EOD = -1
"""No text ends before it is as long as asked for."""
MISSING = "transformers is not installed (extra bench)"


def rows(size: str) -> list[Row]:
    config = reference.config(size)
    full = size == "full"
    with jax.set_mesh(reference.one_device()):
        params = _params(config)
        theirs = _hugging_face(config, params)
        speeds = [row for batch in (1, 32) for row in _beside(config, params, theirs, batch, 128 if full else 8, full)]
        return [*speeds, *_growth(config, params, full), *_multi_query(size)]


def _params(config: Config) -> dict:
    return jax.jit(lambda: init_params(config.model, reference.numerics(config), 0))()


def _generator(config: Config, params: dict, length: int) -> Generator:
    return Generator(config.model, reference.numerics(config), params, NO_EOD, length)


def _prompts(config: Config, batch: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, config.model.vocab_size, (batch, tokens))


def _hugging_face(config: Config, params: dict) -> object | None:
    """The same model in transformers, by way of `paxlike convert to-hf`; None where it is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return None
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        run, out = Path(folder) / "run", Path(folder) / "out"
        (run / "tokenizer").mkdir(parents=True)
        (run / "config.json").write_text(to_json(config))
        BytesTokenizer().save(run / "tokenizer")
        write_checkpoint(run / "checkpoints", {"params": params}, 0, {"step": 0})
        to_hf(run, out)
        model = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    model.generation_config.eos_token_id = None
    return model


class Arrivals:
    """When each token of row 0 came. Both libraries take it: ours as `on_token`, theirs as a streamer, which is handed the prompt first."""

    def __init__(self):
        self.times: list[float] = []

    def __call__(self, row: int, _token: int) -> None:
        if row == 0:
            self.put()

    def put(self, *_) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """A streamer is told."""

    def decoding(self, new: int) -> float:
        """Seconds from the first new token to the last."""
        return self.times[-1] - self.times[-new]


def _our_tokens(generator: Generator, prompts: np.ndarray, new: int) -> tuple[np.ndarray, float]:
    """(tokens, seconds of decoding)."""
    arrivals = Arrivals()
    made = generator.generate(list(prompts), new, on_token=arrivals)
    return np.stack(made), arrivals.decoding(new)


def _their_tokens(model: object, prompts: np.ndarray, new: int) -> tuple[np.ndarray, float]:
    import torch

    arrivals = Arrivals()
    with torch.inference_mode():
        ids = torch.from_numpy(prompts)
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0,
            streamer=arrivals,
        )  # fmt: skip
    return made[:, prompts.shape[1] :].numpy(), arrivals.decoding(new)


def _take_turns(works: dict[str, Callable], turns: int) -> tuple[dict[str, Taken], dict[str, float]]:
    """`take_turns` of works that return (tokens, seconds of decoding); and the medians of those seconds."""
    decoding: dict[str, list[float]] = {name: [] for name in works}
    noted = {name: lambda name=name: decoding[name].append(works[name]()[1]) for name in works}
    taken = take_turns(noted, turns)
    return taken, {name: statistics.median(seconds[-turns:]) for name, seconds in decoding.items()}


def _beside(config: Config, params: dict, theirs: object | None, batch: int, new: int, full: bool) -> list[Row]:
    """Tokens/s with the reading of the prompts, and of decoding alone."""
    prompts = _prompts(config, batch, new)
    generator = _generator(config, params, 2 * new)
    works = {"ours": lambda: _our_tokens(generator, prompts, new)}
    same, beside, goal = MISSING, "", ""
    if theirs is not None:
        works["theirs"] = lambda: _their_tokens(theirs, prompts, new)
        agree = (works["ours"]()[0] == works["theirs"]()[0]).mean()
        same, beside, goal = f"{agree:.1%} of the tokens are the same", "Hugging Face generate", "ahead"
    taken, decoding = _take_turns(works, 3 if full else 1)
    rates = {
        f"batch {batch}, {new} + {new} tokens": {name: batch * new / took.wall for name, took in taken.items()},
        f"batch {batch}, decoding alone": {name: batch * (new - 1) / took for name, took in decoding.items()},
        f"batch {batch}, per CPU second": {name: batch * new / took.cpu for name, took in taken.items()},
    }
    return [
        Row(what, rate["ours"], "tokens/s", beside, rate.get("theirs"), goal, _ahead(rate), same)
        for what, rate in rates.items()
    ]


def _ahead(rate: dict[str, float]) -> bool | None:
    return rate["ours"] > rate["theirs"] if "theirs" in rate else None


def _growth(config: Config, params: dict, full: bool) -> list[Row]:
    """Seconds a token late in a text beside early in it, batch 1; of several texts, as a machine's pace drifts while one is made."""
    length, texts = (1024, 5) if full else (64, 1)
    generator = _generator(config, params, length)
    prompt = list(_prompts(config, 1, 16))
    generator.generate(prompt, length - 16)
    quarter = (length - 16) // 4
    early, late = [], []
    for _ in range(texts):
        arrivals = Arrivals()
        generator.generate(prompt, length - 16, on_token=arrivals)
        took = 1e3 * np.diff(arrivals.times)
        early.append(statistics.median(took[:quarter]))
        late.append(statistics.median(took[-quarter:]))
    ratios = sorted(b / a for a, b in zip(early, late, strict=True))
    ratio = statistics.median(ratios)
    what = f"a token of the last quarter of {length}"
    note = f"medians of {texts} texts, {quarter} tokens each; ratios {ratios[0]:.2f} to {ratios[-1]:.2f}"
    return [
        Row(
            what,
            statistics.median(late),
            "ms",
            "of the first quarter",
            statistics.median(early),
            "flat",
            ratio < 1.15,
            note,
        )
    ]


def _multi_query(size: str) -> list[Row]:
    """Multi-query beside multi-head, as many query heads: the cache's bytes, and decoding with a long one."""
    full = size == "full"
    batch, length, new = (32, 1024, 16) if full else (2, 128, 4)
    works, memory = {}, {}
    for name, heads in (("multi-query", 1), ("multi-head", reference.config(size).model.heads)):
        config = reference.config(size, kv_heads=heads)
        generator, prompts = _generator(config, _params(config), length), _prompts(config, batch, 16)
        works[name] = lambda generator=generator, prompts=prompts: _our_tokens(generator, prompts, new)
        model = config.model
        memory[name] = 2 * 4 * model.layers * batch * rounded_up(length, LENGTH_MULTIPLE) * heads * model.head_dim / 1e6
    _, decoding = _take_turns(works, 3 if full else 1)
    rate = {name: batch * (new - 1) / took for name, took in decoding.items()}
    note = f"batch {batch}, room for {length} tokens"
    return [
        Row("cache, one key/value head", memory["multi-query"], "MB", "multi-head", memory["multi-head"], note=note),
        Row("decoding, one key/value head", rate["multi-query"], "tokens/s", "multi-head", rate["multi-head"], note=note),
    ]  # fmt: skip


if __name__ == "__main__":
    command("Generation", __doc__, rows)
