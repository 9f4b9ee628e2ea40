"""FLOPs, bytes, memory and estimated MFU of `tools/bench/gpu.py`'s programs, without a GPU.

Compiles for one H200 with JAX's CUDA plugin (extra plan-gpu), as `paxlike plan` does. cuDNN's
attention kernel, which cannot be compiled without cuDNN, is counted by formula. Without the plugin,
the FLOPs are those of the traced program and memory is estimated by formula.
"""

import dataclasses

import jax

from paxlike.accounting.executed_flops import executed_flops
from paxlike.accounting.flops import model_flops
from paxlike.accounting.jaxpr import count_products
from paxlike.accounting.memory import memory_estimate
from paxlike.config import Config
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import make_mesh
from paxlike.planning.compile import compile_facts, lower
from paxlike.planning.roofline import work_seconds
from paxlike.planning.topology import MissingCompiler, cluster
from paxlike.training.state import abstract_state
from paxlike.training.step import Program, abstract_batch

TOPOLOGY = "h200:1x1"


def facts(config: Config) -> dict:
    """FLOPs, bytes, memory and estimated MFU of one step."""
    jax.config.update("jax_enable_compilation_cache", False)
    T = config.data.sequence_length
    tokens = config.train.batch_size * T
    result = {
        "batch": config.train.batch_size,
        "length": T,
        "params": config.precision.params,
        "remat": config.model.remat,
        "model_flops": tokens * model_flops(config.model, T, "palm").total,
        "executed_flops": tokens * executed_flops(config.model, T, "cudnn").total,
    }
    machine = cluster(TOPOLOGY)
    try:
        found = compile_facts(lower(config, machine))
    except MissingCompiler as missing:
        return result | _traced(config) | {"how": str(missing)}
    work = found.all_work()
    seconds, _, _ = work_seconds(work, machine.accelerator)
    step = sum(w.times * s for w, s in zip(work, seconds, strict=True))
    mfu = result["model_flops"] / step / machine.chip.peak("bfloat16")
    return result | {
        "how": f"compiled for {TOPOLOGY}",
        "flops": found.flops,
        "bytes": sum(w.times * w.bytes for w in work),
        "memory": found.needed,
        "fits": found.fits(machine.usable),
        "compiling": found.seconds,
        "predicted_step": step,
        "predicted_mfu": None if found.refused else mfu,
    }


def _traced(config: Config) -> dict:
    """Facts of the step traced for the CPU, where attention is two plain matmuls."""
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, attention="reference")
    )
    with jax.set_mesh(make_mesh(config.mesh, jax.devices()[:1])):
        program = Program.of(config, Numerics.of(config.model, config.precision, "cpu"))
        state = abstract_state(config, program.numerics, program.optimizer)
        batch = abstract_batch(config, config.train.batch_size, segments=False)
        products = count_products(jax.make_jaxpr(program.train_step)(state, batch))
    return {
        "flops": products.total,
        "bytes": None,
        "memory": memory_estimate(config, 1, kernel="flash").total,
        "fits": None,
        "compiling": None,
        "predicted_step": None,
        "predicted_mfu": None,
    }
