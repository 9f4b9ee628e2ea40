"""Times a mixture of experts beside the dense model of its active size, on this machine's CPU.

    python -m tools.bench.experts                 prints the table of docs/experts.md
    python -m tools.bench.experts --size test     a smoke test

Both models have the same shape, except that 2 of 8 experts of half the width take the place of
each feed-forward network: the same active parameters, but for the router. A step is a train step on
random tokens. The other rows have the parts of one layer's mixture, forward and backward. All
workloads take turns, and their median turns are compared. On a machine that other programs use,
wall seconds measure those, too, and CPU seconds do not.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from paxlike.config import Config, DataConfig, ExpertsConfig, MeshConfig, ModelConfig, TrainConfig
from paxlike.nn.einsum import Kernel
from paxlike.nn.grouped import grouped
from paxlike.nn.numerics import Numerics
from paxlike.nn.routing import Routes, choose, statistics, to_rows, to_tokens, weights_of_rows
from paxlike.parallel.mesh import make_mesh
from paxlike.training.state import make_state
from paxlike.training.step import DeviceBatch, Program
from tools.bench.measure import Row, command_line, interleave

GOAL = 1.35
EXPERTS = ExpertsConfig(count=8, top_k=2, d_ff=1024)
FULL = ModelConfig(
    layers=4, d_model=512, heads=8, kv_heads=1, head_dim=64, d_ff=2048, vocab_size=4096,
    block="serial", norm="rms",
)  # fmt: skip
TEST = dataclasses.replace(FULL, layers=1, d_model=64, heads=2, head_dim=32, vocab_size=256)


def measure(size: str) -> list[Row]:
    model, batch, length, turns = (FULL, 4, 1024, 5) if size == "full" else (TEST, 2, 64, 2)
    mixture = dataclasses.replace(model, block="serial_experts", experts=EXPERTS)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        steps = {
            "experts": train_step_of(mixture, batch, length),
            "dense": train_step_of(model, batch, length),
        }
        times = interleave(steps, turns, warmup=1)
        parts = interleave(_parts(model.d_model, batch * length), turns, warmup=1)
    experts, dense_step = times["experts"], times["dense"]
    what, baseline = "train step, 2 of 8 experts", "dense, of its active size"
    reached = experts.wall <= GOAL * dense_step.wall
    goal = f"at most {GOAL}"
    rows = [
        Row(what, experts.wall, "s", baseline, dense_step.wall, goal, reached, experts.spread),
        Row(what, experts.cpu, "CPU s", baseline, dense_step.cpu),
    ]
    layer = {name: times.cpu for name, times in parts.items()}
    dense = layer.pop("dense feed-forward")
    baseline = "dense feed-forward of one layer"
    return rows + [Row(name, s, "CPU s", baseline, dense) for name, s in layer.items()]


def train_step_of(model: ModelConfig, batch: int, length: int) -> Callable[[], None]:
    """Runs a train step and waits for it."""
    config = Config(
        model=model, data=DataConfig(sequence_length=length), train=TrainConfig(batch_size=batch)
    )
    program = Program.of(config, Numerics.of(model, config.precision, "cpu"))
    state = make_state(config, program.numerics, program.optimizer)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (1, batch, length + 1))
    place = jax.NamedSharding(jax.sharding.get_mesh(), jax.P(None, ("pod", "data"), None))
    arrays = (tokens[..., :-1], tokens[..., 1:])
    part = DeviceBatch(*(jax.device_put(x.astype(np.int32), place) for x in arrays), None)

    def run() -> None:
        nonlocal state
        state, metrics = program.train_step(state, part)
        jax.block_until_ready((state, metrics))

    return run


def _parts(D: int, T: int) -> dict[str, Callable[[], object]]:
    """The parts of one layer with their backward passes, for random tokens and router."""
    random, c, N = np.random.default_rng(0), EXPERTS, EXPERTS.count
    C, M = T * c.top_k, c.d_ff

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    x_TD, w_DE, x_CD, h_CM = draw(T, D), draw(D, N) * D**-0.5, draw(C, D), draw(C, M)
    wide_DF, wide_FD = draw(D, c.top_k * M), draw(c.top_k * M, D)
    wup_EDM, wdown_EMD = draw(N, D, M), draw(N, M, D)
    routes: Routes = jax.jit(lambda x: choose(x @ w_DE, None, c))(x_TD)

    def router(x_TD: jax.Array, w_DE: jax.Array) -> jax.Array:
        logits_TE = x_TD @ w_DE
        found = choose(logits_TE, None, c)
        sums = statistics(logits_TE, found, found, c)
        return weights_of_rows(found).sum() + sums["probability_E"].sum() + sums["z"]

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return grouped(x, Kernel(w, (None,) * 3, "float32"), routes.sizes_E, "blocks")

    def products(x: jax.Array, h: jax.Array, up: jax.Array, down: jax.Array) -> tuple:
        return product(x, up), product(x, up + 1), product(h, down)

    def network(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        return (jax.nn.silu(x @ up) * (x @ (up + 1))) @ down

    def chosen(x: jax.Array, up: jax.Array, down: jax.Array) -> jax.Array:
        rows = to_rows(x, routes)
        h = jax.nn.silu(product(rows, up)) * product(rows, up + 1)
        return to_tokens(product(h * weights_of_rows(routes)[:, None], down), routes)

    both: dict[str, tuple[Callable, tuple]] = {
        "dense feed-forward": (network, (x_TD, wide_DF, wide_FD)),
        "experts without the router": (chosen, (x_TD, wup_EDM, wdown_EMD)),
        "of which grouped products": (products, (x_CD, h_CM, wup_EDM, wdown_EMD)),
        "of which rows in order": (functools.partial(to_rows, routes=routes), (x_TD,)),
        "of which sums of rows": (functools.partial(to_tokens, routes=routes), (x_CD,)),
        "router, with statistics": (router, (x_TD, w_DE)),
    }
    return {name: _forward_and_backward(*pair) for name, pair in both.items()}


def _forward_and_backward(function: Callable, arguments: tuple) -> Callable[[], object]:
    @jax.jit
    def run(*arguments: jax.Array) -> tuple:
        value, pullback = jax.vjp(function, *arguments)
        return value, pullback(jax.tree.map(jnp.ones_like, value))

    return lambda: jax.block_until_ready(run(*arguments))


def main() -> None:
    command_line("A mixture of experts on the CPU", __doc__ or "", measure)


if __name__ == "__main__":
    main()
