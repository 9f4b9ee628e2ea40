"""Speed of 1-bit weights: a quantized model compared with the same model in float32.

    python -m tools.bench.quant            d_model 512, 8 layers, then d_model 2048, 2 layers
    python -m tools.bench.quant --size 512 --repeats 9 --json out.json

The two are interleaved, so other work on the machine affects both equally. Reports medians of wall
seconds and of CPU seconds of all threads; the latter exclude time taken by other programs.
`forward` is the blocks alone; `loss` includes the logits of every token, which stay in high
precision; `step` is a training step with AdamW.
"""

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from paxlike.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    TrainConfig,
)
from paxlike.infer.generate import Generator
from paxlike.models.decoder import hidden_states
from paxlike.nn.numerics import Numerics
from paxlike.nn.quantized import quantize_params
from paxlike.optim.optimizer import make_optimizer
from paxlike.optim.schedules import make_schedule
from paxlike.parallel.mesh import make_mesh, spec
from paxlike.training.state import make_state
from paxlike.training.step import DeviceBatch, make_eval_step, make_train_step

BITNET = QuantConfig(weights="bitnet", groups=1, statistics="token")
SIZES = {
    512: (
        ModelConfig(
            layers=8, d_model=512, heads=8, kv_heads=1, head_dim=64, d_ff=2048, vocab_size=32_768
        ),
        4,
    ),
    2048: (
        ModelConfig(
            layers=2, d_model=2048, heads=16, kv_heads=1, head_dim=128, d_ff=8192, vocab_size=32_768
        ),
        2,
    ),
}
"""d_model -> (float model, sequences of 512 tokens)."""
TOKENS = 512
NEW = 32
"""Tokens generated after a prompt of TOKENS / 2."""


def config_of(model: ModelConfig, batch: int) -> Config:
    return Config(
        model=model,
        data=DataConfig(sequence_length=TOKENS),
        optim=OptimConfig(name="adamw", learning_rate=1e-4, schedule="constant", warmup_steps=1),
        train=TrainConfig(steps=1000, batch_size=batch),
    )


class Model:
    """A model with random parameters, and the functions to time."""

    def __init__(self, config: Config):
        self.config = config
        self.numerics = Numerics.of(config.model, config.precision, jax.default_backend())
        optimizer = make_optimizer(config.optim, config.train.steps)
        schedule = make_schedule(config.optim, config.train.steps)
        self.state = make_state(config, self.numerics, optimizer)
        self.train_step = make_train_step(config, self.numerics, optimizer, schedule)
        self.eval_step = make_eval_step(config, self.numerics)
        params = self.state.params
        if config.model.quant.active:
            params = quantize_params(config.model, self.numerics, params)
        self.params = jax.tree.map(lambda x: x + 0, params)
        self.blocks = jax.jit(
            lambda params, tokens: hidden_states(config.model, self.numerics, params, tokens)
        )
        self.generator = Generator(
            config.model, self.numerics, self.params, config.model.vocab_size, TOKENS
        )
        self.batch = random_batch(config)

    def workloads(self) -> dict[str, Callable[[], object]]:
        tokens_BT = self.batch.tokens_ABT[0]
        prompt = np.asarray(tokens_BT)[:1, : TOKENS // 2]
        return {
            "forward": lambda: self.blocks(self.params, tokens_BT),
            "loss": lambda: self.eval_step(self.params, self.batch),
            "step": self._step,
            "prefill": lambda: self.generator.generate(list(prompt), 1),
            "prefill and decode": lambda: self.generator.generate(list(prompt), 1 + NEW),
        }

    def _step(self) -> object:
        self.state, metrics = self.train_step(self.state, self.batch)
        return metrics


def random_batch(config: Config) -> DeviceBatch:
    shape = (1, config.train.batch_size, TOKENS)
    stream = np.random.default_rng(0).integers(
        0, config.model.vocab_size, (*shape[:2], TOKENS + 1), np.int32
    )
    place = NamedSharding(jax.sharding.get_mesh(), spec("ABT", shape))
    return DeviceBatch(
        *(jax.device_put(stream[..., at : at + TOKENS], place) for at in (0, 1)), None
    )


def seconds(work: Callable[[], object]) -> np.ndarray:
    """(wall, CPU) seconds."""
    begin = time.perf_counter(), time.process_time()
    jax.block_until_ready(work())
    return np.array([time.perf_counter() - begin[0], time.process_time() - begin[1]])


def compare(pair: dict[str, Model], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Workload -> model -> median (wall, CPU) seconds, without the first turn, which compiles."""
    workloads = {name: model.workloads() for name, model in pair.items()}
    found = {}
    for work in next(iter(workloads.values())):
        times = {name: [] for name in workloads}
        for turn in range(repeats + 1):
            for name in workloads:
                elapsed = seconds(workloads[name][work])
                times[name] += [elapsed] if turn else []
        found[work] = {name: np.median(elapsed, axis=0) for name, elapsed in times.items()}
    found["decode a token"] = {
        n: (found["prefill and decode"][n] - found["prefill"][n]) / NEW for n in workloads
    }
    return {
        work: {name: elapsed.tolist() for name, elapsed in times.items()}
        for work, times in found.items()
    }


def bytes_of(tree: object) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "sizes": {},
    }
    with jax.set_mesh(make_mesh(MeshConfig(data=1), jax.devices()[:1])):
        for size in arguments.size:
            model, batch = SIZES[size]
            quantized = dataclasses.replace(model, quant=BITNET)
            pair = {
                "float": Model(config_of(model, batch)),
                "bitnet": Model(config_of(quantized, batch)),
            }
            found = compare(pair, arguments.repeats)
            memory = {name: bytes_of(one.params["blocks"]) for name, one in pair.items()}
            results["sizes"][size] = {"seconds": found, "block bytes in inference": memory}
            print(
                f"d_model {size}, {model.layers} layers, batch {batch} x {TOKENS}, "
                f"jax {jax.__version__}"
            )
            for work, times in found.items():
                row = "".join(
                    f"{name} {1e3 * elapsed[0]:9.1f} ms ({1e3 * elapsed[1]:9.1f} CPU)   "
                    for name, elapsed in times.items()
                )
                wall, cpu = (times["float"][i] / times["bitnet"][i] for i in (0, 1))
                print(f"  {work:20} {row} {wall:.2f} x ({cpu:.2f} x CPU)", flush=True)
            print(
                f"  bytes of the blocks   float {memory['float']:,}   bitnet {memory['bitnet']:,}"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
