"""Plans for variants of a config: meshes, rematerialization policies and batch sizes, best
first.
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax

from paxlike.accounting.memory import memory_estimate
from paxlike.config import Config, ConfigError, UserError
from paxlike.planning.make_plan import plan
from paxlike.planning.topology import Cluster, MissingCompiler

POLICIES = ("attention", "dots", "full")
SKIP_ABOVE = 1.5
"""A candidate is not compiled if its estimated memory is this many times the limit."""


def candidates(config: Config) -> list[Config]:
    """Half, once and twice the model axis; all policies; the full and half the batch size."""
    model, batch = config.mesh.model, config.train.batch_size
    shapes = (
        [n for n in (model // 2, model, 2 * model) if n >= 1]
        if config.mesh.data == -1 and model > 0
        else [model]
    )
    policies = dict.fromkeys((config.model.remat, *POLICIES))
    batches = [n for n in (batch, batch // 2) if n % config.train.accumulate == 0 and n]
    made = []
    for shards, policy, size in itertools.product(shapes, policies, batches):
        if policy == "full" and "palm" in policies:  # the same program
            continue
        made.append(
            dataclasses.replace(
                config,
                mesh=dataclasses.replace(config.mesh, model=shards),
                model=dataclasses.replace(config.model, remat=policy),
                train=dataclasses.replace(config.train, batch_size=size, batch_ramp=()),
            )
        )
    return made


def sweep(config: Config, made: Cluster, say: Callable[[str], None]) -> list[dict]:
    """A row for each candidate: those that fit by MFU, then the others by memory.

    A candidate that cannot be compiled has an `error`.
    """
    rows = []
    for candidate in candidates(config):
        mesh, policy, size = candidate.mesh, candidate.model.remat, candidate.train.batch_size
        row = {"model": mesh.model, "remat": policy, "batch_size": size}
        try:
            if (left_out := _far_too_large(candidate, made)) is not None:
                rows.append({**row, **left_out})
                continue
            result = plan(candidate, made, say)
            jax.clear_caches()  # one candidate's programs at a time in memory
        except MissingCompiler:
            raise
        except UserError as error:
            rows.append({**row, "fits": False, "needed": 0, "error": str(error)})
            continue
        rows.append({**row, **_short(result)})
    return sorted(rows, key=_order)


def _far_too_large(candidate: Config, made: Cluster) -> dict | None:
    estimate = memory_estimate(candidate, made.device_count).total
    if made.usable is None or estimate <= SKIP_ABOVE * made.usable:
        return None
    return {"fits": False, "needed": estimate, "error": "estimated only: far too large to compile"}


def _short(result: dict) -> dict:
    short = {
        "mesh": result["mesh"],
        "fits": result["fits"],
        "needed": result["memory"]["needed"],
        "error": result["refused"],
    }
    if "predicted" in result:
        short |= {
            name: result["predicted"][name] for name in ("mfu", "hfu", "tokens_per_second", "days")
        }
        short["step"] = result["predicted"]["seconds"]["step"]
    return short


def _order(row: dict) -> tuple:
    return row["fits"] is False, bool(row["error"]), -row.get("mfu", 0.0), row["needed"]


def check(config: Config) -> None:
    """Raises ConfigError if there is nothing to vary."""
    if len(candidates(config)) < 2:
        raise ConfigError(
            "--sweep has nothing to vary; set mesh.data to -1, or use an even train.batch_size."
        )
