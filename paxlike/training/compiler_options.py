"""XLA options of the train step, by chip: `paxlike train` and `paxlike plan` use the same.

TPU compilers hide almost no communication by default, GPU compilers only some. Options that a user
sets in LIBTPU_INIT_ARGS or XLA_FLAGS take precedence. Measured effects: docs/performance.md.
"""

import os
import re
import shlex
from collections.abc import Callable, Mapping
from types import MappingProxyType
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
        "xla_tpu_prefer_async_allgather_to_allreduce", True, _TPUS,
        "keeps a gather over three dimensions of the torus, which otherwise becomes an all-reduce",
    ),
    Option(
        "xla_max_concurrent_async_collective_permutes", "8", ("v4",),
        "lets more pieces of the stream and of gradients travel at a time",
    ),
    Option(
        "xla_tpu_enable_sparse_core_collective_offload_all_gather", True, _SPARSE_CORES,
        "a SparseCore runs it beside the TensorCore",
    ),
    Option(
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter", True, _SPARSE_CORES,
        "for the gradients, which have no other asynchronous form",
    ),
    Option(
        "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter", True, _SPARSE_CORES,
        "over several dimensions of the torus, where they otherwise become all-reduces",
    ),
    Option(
        "xla_tpu_sparse_core_reduce_scatter_latency_multiplier", "3", _SPARSE_CORES,
        "the scheduler's estimate of their time is too short, and the device would wait",
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


class Switch(NamedTuple):
    """Options that `paxlike plan --tune` tries to turn off together."""

    name: str
    chips: tuple[str, ...]
    off: dict[str, bool | str]


SWITCHES = (
    Switch("collective fusion", _TPUS, {"xla_tpu_enable_async_collective_fusion": False}),
    Switch(
        "SparseCore offload",
        _SPARSE_CORES,
        {
            f"xla_tpu_enable_sparse_core_collective_offload_{kind}": False
            for kind in ("all_gather", "reduce_scatter", "nd_reduce_scatter", "all_reduce")
        },
    ),
    # XLA's default threshold.
    Switch(
        "separate gradients",
        _GPUS,
        {"xla_gpu_reduce_scatter_combine_threshold_bytes": str(30 * 2**20 + 7)},
    ),
)


def compiler_options(device_kind: str) -> dict[str, str | bool]:
    """The options for a kind of device (`device.device_kind`), without those that the user set."""
    chip, users = _chip(device_kind), user_flags()
    return {o.name: o.value for o in OPTIONS if chip in o.chips and o.name not in users}


def switches(device_kind: str) -> list[Switch]:
    """The switches for a kind of device, without those of which the user set an option."""
    chip, users = _chip(device_kind), user_flags()
    return [s for s in SWITCHES if chip in s.chips and not users.keys() & s.off.keys()]


def _chip(device_kind: str) -> str:
    """Name in the hardware table, or empty."""
    return next((chip.name for chip in CHIPS if device_kind in chip.device_kinds), "")


def as_environment(options: Mapping[str, bool | str]) -> str:
    """Options as an environment variable for a shell: `LIBTPU_INIT_ARGS='--name=value'`."""
    if not options:
        return ""
    values = {name: str(value).lower() for name, value in options.items()}
    variable = (
        "XLA_FLAGS" if any(name.startswith("xla_gpu") for name in values) else "LIBTPU_INIT_ARGS"
    )
    flags = " ".join(f"--{name}={value}" for name, value in values.items())
    return f"{variable}={shlex.quote(flags)}"


def compile_step(
    lowered: jax.stages.Lowered,
    device_kind: str,
    warn: Callable[[str], None],
    changed: Mapping[str, bool | str] = MappingProxyType({}),
) -> jax.stages.Compiled:
    """Compiles the train step with the options for a kind of device. changed: other values.

    An option that the installed compiler does not have is left out with a warning. Raises the
    compiler's other errors.
    """
    options = compiler_options(device_kind) | dict(changed)
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
