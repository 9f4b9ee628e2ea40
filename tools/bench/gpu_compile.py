"""What the compiled programs of `tools/bench/gpu.py` are, without a GPU: FLOPs, bytes, memory, and the planner's estimate of the MFU.

Compiled for one H200 by JAX's CUDA plugin (extra plan-gpu), as `paxlike plan` does; cuDNN's attention kernel, which cannot be compiled
where there is no cuDNN, is counted by formula. Without the plugin the FLOPs are the traced
program's, and memory is an estimate by arithmetic.
"""

import dataclasses

import jax

from paxlike.accounting.flops import executed_flops, model_flops
from paxlike.accounting.jaxpr import count_products
from paxlike.accounting.memory import memory_estimate
from paxlike.config import Config
from paxlike.nn.weight import Numerics
from paxlike.parallel.mesh import make_mesh
from paxlike.plan.compile import compile_facts, lower
from paxlike.plan.roofline import times
from paxlike.plan.topology import MissingCompiler, cluster
from paxlike.train.state import abstract_state
from paxlike.train.step import Program, abstract_batch

TOPOLOGY = "h200:1x1"


def facts(config: Config) -> dict:
    """Of a step of the whole batch."""
    jax.config.update("jax_enable_compilation_cache", False)
    tokens, T = config.train.batch_size * config.data.sequence_length, config.data.sequence_length
    told = {
        "batch": config.train.batch_size, "length": T, "params": config.precision.params, "remat": config.model.remat,
        "model_flops": tokens * model_flops(config.model, T, "palm").total,
        "executed_flops": tokens * executed_flops(config.model, T, "cudnn").total,
    }  # fmt: skip
    made = cluster(TOPOLOGY)
    try:
        found = compile_facts(lower(config, made))
    except MissingCompiler as missing:
        return told | _traced(config) | {"how": str(missing)}
    step = times(found.work, [], made.chip).step
    return told | {
        "how": f"compiled for {TOPOLOGY}", "flops": found.flops, "bytes": sum(runs * moved for runs, _, moved, *_ in found.work),
        "memory": found.needed, "fits": found.fits(made.usable), "compiling": found.seconds, "predicted_step": step,
        "predicted_mfu": None if found.refused else told["model_flops"] / step / made.chip.peak("bfloat16"),
    }  # fmt: skip


def _traced(config: Config) -> dict:
    """The traced step on the CPU, where attention is two plain products."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="reference"))
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        program = Program.of(config, Numerics.of(config.model, config.precision, "cpu"))
        state = abstract_state(config, program.numerics, program.optimizer)
        batch = abstract_batch(config, config.train.batch_size, segments=False)
        products = count_products(jax.make_jaxpr(program.train_step)(state, batch))
    return {
        "flops": products.total, "bytes": None, "memory": memory_estimate(config, 1, kernel="flash").total, "fits": None, "compiling": None,
        "predicted_step": None, "predicted_mfu": None,
    }  # fmt: skip
