"""Plans for neighbors of a config: meshes, rematerialization policies and batch sizes around its own, best first."""

import dataclasses
import itertools
from collections.abc import Callable

import jax

from paxlike.accounting.memory import memory_estimate
from paxlike.config import Config, ConfigError, UserError
from paxlike.plan.topology import Cluster, MissingCompiler
from paxlike.plan.verb import plan

POLICIES = ("attention", "dots", "full")
HOPELESS = 1.5
"""A candidate whose memory the arithmetic puts this many times above the limit is not compiled."""


def candidates(config: Config) -> list[Config]:
    """Half, once and twice the model axis; the policies; the batch and half of it."""
    model, batch = config.mesh.model, config.train.batch_size
    shapes = [n for n in (model // 2, model, 2 * model) if n >= 1] if config.mesh.data == -1 and model > 0 else [model]
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
    """A row for each candidate, best first: those that fit by MFU, then the others by what they need. A candidate that cannot be has an
    `error`."""
    rows = []
    for candidate in candidates(config):
        mesh, policy, size = candidate.mesh, candidate.model.remat, candidate.train.batch_size
        row = {"model": mesh.model, "remat": policy, "batch_size": size}
        try:
            if (left_out := _hopeless(candidate, made)) is not None:
                rows.append({**row, **left_out})
                continue
            told = plan(candidate, made, say)
            jax.clear_caches()  # one candidate's programs at a time in memory
        except MissingCompiler:
            raise
        except UserError as error:
            rows.append({**row, "fits": False, "needed": 0, "error": str(error)})
            continue
        rows.append({**row, **_short(told)})
    return sorted(rows, key=_order)


def _hopeless(candidate: Config, made: Cluster) -> dict | None:
    estimate = memory_estimate(candidate, made.device_count).total
    if made.usable is None or estimate <= HOPELESS * made.usable:
        return None
    return {"fits": False, "needed": estimate, "error": "estimated only: far too large to compile"}


def _short(told: dict) -> dict:
    short = {"mesh": told["mesh"], "fits": told["fits"], "needed": told["memory"]["needed"], "error": told["refused"]}
    if "predicted" in told:
        short |= {name: told["predicted"][name] for name in ("mfu", "hfu", "tokens_per_second", "days")}
        short["step"] = told["predicted"]["seconds"]["step"]
    return short


def _order(row: dict) -> tuple:
    return row["fits"] is False, bool(row["error"]), -row.get("mfu", 0.0), row["needed"]


def check(config: Config) -> None:
    """Raises ConfigError where there is nothing to vary."""
    if len(candidates(config)) < 2:
        raise ConfigError("--sweep finds nothing to vary: leave mesh.data at -1, or give a batch that can be halved.")
