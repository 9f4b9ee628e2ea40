"""XLA options of the train step, by chip: `paxlike train` and `paxlike plan` use the same.

TPU compilers hide almost no communication by default, GPU compilers only some. Options that a user
sets in LIBTPU_INIT_ARGS or XLA_FLAGS take precedence. Measured effects: docs/performance.md.
"""

import os
import re
from collections.abc import Callable
from typing import NamedTuple

import jax

from paxlike.accounting.hardware import CHIPS


class Option(NamedTuple):
    name: str
    value: bool | str
    chips: tuple[str, ...]
    """Names in the hardware table."""
    reason: str


_TPUS = ("v4", "v5e", "v5p", "v6e", "v7x")
_SPARSE_CORES = ("v5p", "v6e", "v7x")
_GPUS = ("h100", "h200", "b200")
OPTIONS = (
    Option(
        "xla_tpu_enable_async_collective_fusion", True, _TPUS,
        "lets a collective advance inside of the fusion of a matrix product",
    ),
    Option(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather", True, _TPUS,
        "for the gathers of weights over data",
    ),
    Option(
        "xla_tpu_enable_async_collective_fusion_multiple_steps", True, _TPUS,
        "spreads a long gather over several products",
    ),
    Option(
        "xla_tpu_overlap_compute_collective_tc", True, _TPUS,
        "runs both on the TensorCore at the same time",
    ),
    Option("xla_enable_async_all_gather", True, _TPUS, "makes gathers asynchronous"),
    Option(
        "xla_tpu_enable_sparse_core_collective_offload_all_gather", True, _SPARSE_CORES,
        "a SparseCore runs it beside the TensorCore",
    ),
    Option(
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter", True, _SPARSE_CORES,
        "for the gradients, which have no other asynchronous form",
    ),
    Option(
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce", True, _SPARSE_CORES,
        "for norm statistics and the gradients of replicated weights",
    ),
    Option(
        "xla_tpu_use_tc_device_shape_on_sc", True, _SPARSE_CORES,
        "SparseCores read the TensorCore's layouts without a copy",
    ),
    Option(
        "xla_sc_disable_megacore_partitioning", True, _SPARSE_CORES,
        "required by the offload on chips with two TensorCores",
    ),
    Option(
        "xla_tpu_enable_concurrent_sparse_core_offloading", True, _SPARSE_CORES,
        "several collectives at a time, on different links",
    ),
    Option(
        "xla_gpu_reduce_scatter_combine_threshold_bytes", "16777216", _GPUS,
        "keeps a layer's gradients separate, so that each is sent during the next product",
    ),
)  # fmt: skip


def compiler_options(device_kind: str) -> dict[str, str | bool]:
    """The options for a kind of device (`device.device_kind`), without those that the user set."""
    chip = next((chip.name for chip in CHIPS if device_kind in chip.device_kinds), "")
    users = user_flags()
    return {o.name: o.value for o in OPTIONS if chip in o.chips and o.name not in users}


def compile_step(
    lowered: jax.stages.Lowered, device_kind: str, warn: Callable[[str], None]
) -> jax.stages.Compiled:
    """Compiles the train step with the options for a kind of device.

    An option that the installed compiler does not have is left out with a warning. Raises the
    compiler's other errors.
    """
    options = compiler_options(device_kind)
    while True:
        try:
            return lowered.compile(compiler_options=options or None)
        except jax.errors.JaxRuntimeError as error:
            unknown = re.search(r"No such compile option: '(\w+)'", str(error))
            if not unknown or options.pop(unknown[1], None) is None:
                raise
            warn(
                f"this compiler has no option {unknown[1]}; the step may hide less communication. "
                "paxlike's options are made for the newest libtpu and JAX."
            )


def user_flags() -> dict[str, str]:
    """The flags in LIBTPU_INIT_ARGS and XLA_FLAGS, without their dashes."""
    words = " ".join(os.environ.get(name, "") for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS"))
    pairs = (word.lstrip("-").partition("=") for word in words.split() if word.startswith("--"))
    return {name: value for name, _, value in pairs}
