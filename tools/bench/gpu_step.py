"""Measures one size of `tools/bench/gpu.py` on this machine's first device.

    python -m tools.bench.gpu_step NAME BATCH [--option NAME] [--remat POLICY]   the training step
    python -m tools.bench.gpu_step NAME BATCH --int8      int8 forward pass compared with bfloat16
    python -m tools.bench.gpu_step --matmul SIZE          a bare matmul

Runs in its own process so that all memory is free at the start. Prints one line of JSON. Exit
code 3: out of memory.
"""

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import time

BEGIN = time.time()

import jax  # noqa: E402 - the time to the first step includes imports
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402

from paxlike.accounting.executed_flops import executed_flops  # noqa: E402
from paxlike.accounting.flops import model_flops  # noqa: E402
from paxlike.accounting.hardware import chip_of_device  # noqa: E402
from paxlike.accounting.throughput import utilization  # noqa: E402
from paxlike.config import Config, QuantConfig, UserError  # noqa: E402
from paxlike.models.decoder import hidden_states, init_params  # noqa: E402
from paxlike.nn.numerics import Numerics  # noqa: E402
from paxlike.nn.quantized import quantize_params  # noqa: E402
from paxlike.parallel.mesh import make_mesh, spec  # noqa: E402
from paxlike.training.compiler_options import compiler_options  # noqa: E402
from paxlike.training.state import make_state  # noqa: E402
from paxlike.training.step import DeviceBatch, Program  # noqa: E402
from tools.bench.gpu_sizes import OPTIONS, SIZES  # noqa: E402

WARMUP, ROUNDS, STEPS = 3, 5, 5
"""Untimed steps; timed rounds; steps per round, which ends with one wait for the device."""
OUT_OF_MEMORY = 3


def measure_step(config: Config, options: dict) -> dict:
    """Speed, peak memory and time to the first step of the training step of `config`."""
    numerics = Numerics.of(config.model, config.precision, jax.default_backend())
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        program = Program.of(config, numerics)
        state, batch = make_state(config, numerics, program.optimizer), _batch(config)
        begin = time.time()
        options = compiler_options(jax.devices()[0].device_kind) | options
        compiled = program.train_step.lower(state, batch).compile(compiler_options=options or None)
        compiling = time.time() - begin
        state, metrics = jax.block_until_ready(compiled(state, batch))
        first = time.time() - BEGIN
        for _ in range(WARMUP):
            state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        rounds = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            for _ in range(STEPS):
                state, metrics = compiled(state, batch)
            jax.block_until_ready((state, metrics))
            rounds.append((time.perf_counter() - begin) / STEPS)
    loss = float(metrics["loss"])
    if not np.isfinite(loss):
        raise RuntimeError(
            f"The loss is {loss}, so the step is wrong and its speed is meaningless."
        )
    return _summary(config, numerics, rounds) | {
        "first_step": first,
        "compiling": compiling,
        "loss": loss,
    }


def _summary(config: Config, numerics: Numerics, rounds: list[float]) -> dict:
    tokens = config.train.batch_size * config.data.sequence_length
    rate, device = tokens / statistics.median(rounds), jax.devices()[0]
    summary = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "attention": numerics.attention,
        "compute": numerics.compute,
        "batch": config.train.batch_size,
        "length": config.data.sequence_length,
        "params": numerics.params,
        "remat": config.model.remat,
        "seconds": rounds,
        "tokens_per_second": rate,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use"),
    }
    try:
        chip = chip_of_device(device.device_kind)
    except UserError:
        return summary | {"utilization": None}
    of = {"tokens_per_second": rate, "chips": 1, "chip": chip}
    T = config.data.sequence_length
    shares = {
        "mfu palm": utilization("MFU", model_flops(config.model, T), **of),
        "mfu causal": utilization("MFU, causal", model_flops(config.model, T, "causal"), **of),
        "hfu": utilization("HFU", executed_flops(config.model, T, numerics.attention), **of),
    }
    warnings = [share.warning for share in shares.values() if share.warning]
    return summary | {
        "utilization": {name: share.fraction for name, share in shares.items()},
        "warnings": warnings,
    }


def _batch(config: Config) -> DeviceBatch:
    shape = (1, config.train.batch_size, config.data.sequence_length)
    stream = np.random.default_rng(0).integers(
        0, config.model.vocab_size, (*shape[:2], shape[2] + 1), np.int32
    )
    place = NamedSharding(jax.sharding.get_mesh(), spec("ABT", shape))
    return DeviceBatch(
        *(jax.device_put(stream[..., at : at + shape[2]], place) for at in (0, 1)), None
    )


def int8_forward(config: Config) -> dict:
    """Seconds of the blocks' forward pass in bfloat16 and with ternary weights and int8 matmuls."""
    rounds: dict[str, list[float]] = {"bfloat16": [], "int8": []}
    quant = QuantConfig(weights="bitnet_b158", variant="code")
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        tokens_BT, workloads = _batch(config).tokens_ABT[0], {}
        for name, model in (
            ("bfloat16", config.model),
            ("int8", dataclasses.replace(config.model, quant=quant)),
        ):
            numerics = Numerics.of(model, config.precision, jax.default_backend())
            params = jax.jit(
                lambda model=model, numerics=numerics: init_params(model, numerics, 0)
            )()
            if model.quant.active:
                params = quantize_params(model, numerics, params)
            run = jax.jit(functools.partial(hidden_states, model, numerics))
            workloads[name] = (run, params)
            integer = numerics.integer
        for turn in range(1 + ROUNDS):
            for name, (run, params) in workloads.items():
                jax.block_until_ready(run(params, tokens_BT))
                begin = time.perf_counter()
                jax.block_until_ready([run(params, tokens_BT) for _ in range(STEPS)][-1])
                rounds[name] += [(time.perf_counter() - begin) / STEPS] if turn else []
    seconds = {name: statistics.median(times) for name, times in rounds.items()}
    return {
        "seconds": rounds,
        "int8 products": integer,
        "batch": config.train.batch_size,
        "speedup": seconds["bfloat16"] / seconds["int8"],
    }


def bare_matmul(size: int) -> dict:
    """FLOP/s of a square bfloat16 matmul of random numbers, an upper limit for the step."""
    a, b = (jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in (0, 1))
    matmul, rounds = jax.jit(jnp.matmul), []
    for _ in range(1 + ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready([matmul(a, b) for _ in range(STEPS)])
        rounds.append((time.perf_counter() - begin) / STEPS)
    return {
        "size": size,
        "seconds": rounds[1:],
        "flops_per_second": 2 * size**3 / statistics.median(rounds[1:]),
    }


def _options(given: list[str]) -> dict:
    for name in given:
        if name not in OPTIONS:
            raise UserError(f"Unknown option {name}; choose from {', '.join(OPTIONS)}.")
    return {name: OPTIONS[name][0] for name in given}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", nargs="?", choices=SIZES)
    parser.add_argument("batch", nargs="?", type=int)
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        help="compile with this option of gpu_sizes.OPTIONS",
    )
    parser.add_argument("--remat", default=None, help="override the remat policy of the size")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--matmul", type=int, metavar="SIZE")
    flags = parser.parse_args(arguments)
    try:
        if flags.matmul:
            result = bare_matmul(flags.matmul)
        elif flags.int8:
            result = int8_forward(SIZES[flags.size].config(flags.batch))
        else:
            changed = {"remat": flags.remat} if flags.remat else {}
            result = measure_step(
                SIZES[flags.size].config(flags.batch, **changed), _options(flags.option)
            )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
