"""Generation: tokens/s compared with Hugging Face's `generate`, and cost per token as a text grows.

    python -m tools.bench.generation [--size test] [--json FILE]

Needs torch and transformers (extra bench) for the comparison; without them the rows have no
baseline and say so. Both libraries read prompts of one length and make the same number of tokens,
greedily in float32 from the same weights; the benchmark compares the tokens.
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
from paxlike.models.decoder import init_params
from paxlike.training.checkpoint import write_checkpoint
from tools.bench import reference
from tools.bench.measure import Row, Timings, command_line, interleave

NO_EOD = -1
"""No text ends before it reaches the requested length."""
MISSING = "transformers is not installed (extra bench)"


def rows(size: str) -> list[Row]:
    config = reference.config(size)
    full = size == "full"
    with jax.set_mesh(reference.one_device()):
        params = _params(config)
        baseline = _hugging_face(config, params)
        speeds = [
            row
            for batch in (1, 32)
            for row in _compare(config, params, baseline, batch, 128 if full else 8, full)
        ]
        return [*speeds, _cost_by_position(config, params, full), *_multi_query(size)]


def _params(config: Config) -> dict:
    return jax.jit(lambda: init_params(config.model, reference.numerics(config), 0))()


def _generator(config: Config, params: dict, length: int) -> Generator:
    return Generator(config.model, reference.numerics(config), params, NO_EOD, length)


def _prompts(config: Config, batch: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, config.model.vocab_size, (batch, tokens))


def _hugging_face(config: Config, params: dict) -> object | None:
    """The same model in transformers, made by `paxlike convert to-hf`; None if not installed."""
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
    """Records when each token of row 0 arrives.

    Serves as `on_token` for paxlike and as a streamer for transformers, which passes the prompt
    to the streamer first.
    """

    def __init__(self):
        self.times: list[float] = []

    def __call__(self, row: int, _token: int) -> None:
        if row == 0:
            self.put()

    def put(self, *_) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Part of the streamer protocol."""

    def decoding(self, new: int) -> float:
        """Seconds from the first new token to the last."""
        return self.times[-1] - self.times[-new]


def _generate(generator: Generator, prompts: np.ndarray, new: int) -> tuple[np.ndarray, float]:
    """(tokens, seconds of decoding) of paxlike."""
    arrivals = Arrivals()
    made = generator.generate(list(prompts), new, on_token=arrivals)
    return np.stack(made), arrivals.decoding(new)


def _generate_baseline(model: object, prompts: np.ndarray, new: int) -> tuple[np.ndarray, float]:
    """(tokens, seconds of decoding) of transformers."""
    import torch

    arrivals = Arrivals()
    with torch.inference_mode():
        ids = torch.from_numpy(prompts)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            streamer=arrivals,
        )
    return made[:, prompts.shape[1] :].numpy(), arrivals.decoding(new)


def _interleave(
    workloads: dict[str, Callable], turns: int
) -> tuple[dict[str, Timings], dict[str, float]]:
    """`interleave` for workloads that return (tokens, seconds of decoding).

    Also returns the median of those seconds.
    """
    decoding: dict[str, list[float]] = {name: [] for name in workloads}
    recording = {
        name: lambda name=name: decoding[name].append(workloads[name]()[1]) for name in workloads
    }
    timings = interleave(recording, turns)
    return timings, {
        name: statistics.median(seconds[-turns:]) for name, seconds in decoding.items()
    }


def _compare(
    config: Config, params: dict, baseline: object | None, batch: int, new: int, full: bool
) -> list[Row]:
    """Tokens/s including prefill, and of decoding alone."""
    prompts = _prompts(config, batch, new)
    generator = _generator(config, params, 2 * new)
    workloads = {"paxlike": lambda: _generate(generator, prompts, new)}
    note, name, goal = MISSING, "", ""
    if baseline is not None:
        workloads["baseline"] = lambda: _generate_baseline(baseline, prompts, new)
        agree = (workloads["paxlike"]()[0] == workloads["baseline"]()[0]).mean()
        note = f"{agree:.1%} of the tokens are the same"
        name, goal = "Hugging Face generate", "faster"
    timings, decoding = _interleave(workloads, 3 if full else 1)
    tokens = batch * new
    rates = {
        f"batch {batch}, {new} + {new} tokens": {
            who: tokens / timing.wall for who, timing in timings.items()
        },
        f"batch {batch}, decoding alone": {
            who: batch * (new - 1) / seconds for who, seconds in decoding.items()
        },
        f"batch {batch}, per CPU second": {
            who: tokens / timing.cpu for who, timing in timings.items()
        },
    }
    return [
        Row(
            what, rate["paxlike"], "tokens/s", name, rate.get("baseline"), goal, _faster(rate), note
        )
        for what, rate in rates.items()
    ]


def _faster(rate: dict[str, float]) -> bool | None:
    return rate["paxlike"] > rate["baseline"] if "baseline" in rate else None


def _cost_by_position(config: Config, params: dict, full: bool) -> Row:
    """Seconds per token late in a text compared with early in it, batch 1.

    Takes the median of several texts, because a machine's speed drifts while one is made.
    """
    length, texts = (1024, 5) if full else (64, 1)
    generator = _generator(config, params, length)
    prompt = list(_prompts(config, 1, 16))
    generator.generate(prompt, length - 16)
    quarter = (length - 16) // 4
    early, late = [], []
    for _ in range(texts):
        arrivals = Arrivals()
        generator.generate(prompt, length - 16, on_token=arrivals)
        milliseconds = 1e3 * np.diff(arrivals.times)
        early.append(statistics.median(milliseconds[:quarter]))
        late.append(statistics.median(milliseconds[-quarter:]))
    ratios = sorted(b / a for a, b in zip(early, late, strict=True))
    spread = f"ratios {ratios[0]:.2f} to {ratios[-1]:.2f}"
    return Row(
        f"a token of the last quarter of {length}",
        statistics.median(late),
        "ms",
        "of the first quarter",
        statistics.median(early),
        "flat",
        statistics.median(ratios) < 1.15,
        f"medians of {texts} texts, {quarter} tokens each; {spread}",
    )


def _multi_query(size: str) -> list[Row]:
    """Multi-query compared with multi-head attention: cache size, and decoding with a long cache.

    Both have the same number of query heads.
    """
    full = size == "full"
    batch, length, new = (32, 1024, 16) if full else (2, 128, 4)
    room = rounded_up(length, LENGTH_MULTIPLE)
    workloads, memory = {}, {}
    for name, heads in (("multi-query", 1), ("multi-head", reference.config(size).model.heads)):
        config = reference.config(size, kv_heads=heads)
        generator = _generator(config, _params(config), length)
        prompts = _prompts(config, batch, 16)
        workloads[name] = lambda generator=generator, prompts=prompts: _generate(
            generator, prompts, new
        )
        entries = 2 * config.model.layers * batch * room * heads * config.model.head_dim
        memory[name] = 4 * entries / 1e6
    _, decoding = _interleave(workloads, 3 if full else 1)
    rate = {name: batch * (new - 1) / seconds for name, seconds in decoding.items()}
    note = f"batch {batch}, room for {length} tokens"
    return [
        Row(f"{what}, one key/value head", one, unit, "multi-head", many, note=note)
        for what, unit, one, many in (
            ("cache", "MB", memory["multi-query"], memory["multi-head"]),
            ("decoding", "tokens/s", rate["multi-query"], rate["multi-head"]),
        )
    ]


if __name__ == "__main__":
    command_line("Generation", __doc__, rows)
