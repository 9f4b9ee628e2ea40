"""Searches the mesh shape, transport of experts, rematerialization, accumulation, batch size and
compiler options of the fastest step.

Candidates are ordered and pruned by arithmetic: one whose estimated memory is far above the limit,
or whose matrix products alone take longer per token than the best step so far, is not compiled. The
given config is compiled first, so that the result is never worse. It is also compiled with each
group of compiler options off (`SWITCHES`); a group that slows it down stays off for the others.
Compiled programs are cached, so that another search continues where the first one stopped.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator

import jax

from paxlike.accounting.executed_flops import executed_flops
from paxlike.accounting.memory import memory_estimate
from paxlike.config import Config, ConfigError, UserError
from paxlike.planning.efficiency import CAUSAL, efficiency
from paxlike.planning.expert_transports import TRANSPORTS
from paxlike.planning.make_plan import plan
from paxlike.planning.sweep import SKIP_ABOVE
from paxlike.planning.topology import Cluster, MissingCompiler
from paxlike.training.compiler_options import Switch, switches

POLICIES = ("none", "attention", "dots", "full")
ACCUMULATE = (1, 2, 4)
BATCHES = (1, 2)
"""Multiples of the given batch size."""
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Candidate:
    config: Config
    changes: tuple[tuple[str, str, int | str], ...]
    """(section, field, value) that differ from the given config."""
    off: tuple[Switch, ...] = ()
    """Compiler options that are off."""

    @property
    def flags(self) -> str:
        """The changes as flags of `paxlike train`, and the compiler options that are off."""
        flags = [f"--{section}.{field} {value}" for section, field, value in self.changes]
        return " ".join([*flags, *(f"without {switch.name}" for switch in self.off)])

    @property
    def options(self) -> dict[str, bool | str]:
        return {name: value for switch in self.off for name, value in switch.off.items()}


def candidates(config: Config, devices: int) -> Iterator[Candidate]:
    """All valid combinations, the given config first."""
    yield Candidate(config, ())
    per_pod = devices // max(1, config.mesh.pod)
    shapes = [n for n in range(1, per_pod + 1) if per_pod % n == 0 and n <= 64]
    axes = (shapes, _expert_axes(config), POLICIES, ACCUMULATE, BATCHES)
    for model, (expert, transport), policy, accumulate, times in itertools.product(*axes):
        same = (model, expert) == (config.mesh.model, config.mesh.expert)
        wanted = (
            ("mesh", "expert", expert, config.mesh.expert),
            ("mesh", "expert_transport", transport, config.mesh.expert_transport),
            ("mesh", "model", model, config.mesh.model),
            ("mesh", "data", -1, -1 if same else config.mesh.data),
            ("model", "remat", policy, config.model.remat),
            ("train", "accumulate", accumulate, config.train.accumulate),
            ("train", "batch_size", times * config.train.batch_size, config.train.batch_size),
        )
        changes = tuple((s, f, value) for s, f, value, given in wanted if value != given)
        if not changes or (policy == "full" and config.model.remat == "palm"):  # the same program
            continue
        try:
            changed = changed_config(config, changes)
            changed.mesh.resolve(devices)
        except ConfigError:
            continue
        yield Candidate(changed, changes)


def _expert_axes(config: Config) -> list[tuple[int, str]]:
    """(mesh.expert, mesh.expert_transport) to try: as given, and all that divide the experts."""
    given = config.mesh.expert, config.mesh.expert_transport
    count = config.model.experts.count
    sharded = [n for n in range(2, count + 1) if count % n == 0]
    tried = [(1, config.mesh.expert_transport), *itertools.product(sharded, TRANSPORTS)]
    return [given, *(pair for pair in tried if pair != given)]


def changed_config(config: Config, changes: tuple[tuple[str, str, int | str], ...]) -> Config:
    """Raises ConfigError if the result is not valid."""
    for section, field, value in changes:
        part = dataclasses.replace(getattr(config, section), **{field: value})
        if (section, field) == ("train", "batch_size"):
            part = dataclasses.replace(part, batch_ramp=())
        config = dataclasses.replace(config, **{section: part})
    return config


def least_seconds_per_token(candidate: Candidate, made: Cluster) -> float:
    """The time of the matrix products alone, over all chips: a lower bound."""
    config, chip = candidate.config, made.accelerator
    kernel = {"tpu": "splash", "gpu": "cudnn"}[made.platform]
    flops = executed_flops(config.model, config.data.sequence_length, kernel).total
    reached = efficiency(chip)
    # Attention's products count as full squares here, of which a kernel skips the masked part.
    fastest = max(reached.matmul, reached.kernel / CAUSAL)
    return flops / (made.chips * chip.peak() * fastest)


def tune(
    config: Config,
    made: Cluster,
    minutes: float,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict:
    """Returns {"config", "cluster", "minutes", "tried", "left", "rows"}; rows are best first.

    Raises UserError for a cluster without a hardware row, and MissingCompiler.
    """
    if made.chip is None:
        raise UserError(f"--tune needs predicted times, and {made.name} has no row of hardware.")
    given, *others = candidates(config, made.device_count)
    kind = made.devices()[0].device_kind
    switched = [dataclasses.replace(given, off=(switch,)) for switch in switches(kind)]
    ordered = [given, *switched, *sorted(others, key=lambda c: _rank(c, made))]
    begin, rows, left = clock(), [], 0
    best: dict | None = None
    off: tuple[Switch, ...] = ()
    for number, candidate in enumerate(ordered):
        spent = (clock() - begin) / 60
        if number and spent >= minutes:
            left = sum(_worth(c, made, best) for c in ordered[number:])
            break
        if number and not _worth(candidate, made, best):
            continue
        if candidate.off and best is None:  # there is nothing to compare with
            continue
        candidate = dataclasses.replace(candidate, off=off + candidate.off)
        say(_progress(candidate, number, len(ordered), spent, best))
        row = _compiled(candidate, made)
        rows.append(row)
        if row["fits"] and (best is None or row["seconds_per_token"] < best["seconds_per_token"]):
            best = row
            off = candidate.off
    rows.sort(key=lambda row: (not row["fits"], row.get("seconds_per_token", 0.0)))
    return {
        "config": config.name,
        "cluster": made.name,
        "minutes": (clock() - begin) / 60,
        "tried": len(rows),
        "left": left,
        "rows": rows,
    }


def _rank(candidate: Candidate, made: Cluster) -> tuple:
    """Fewest FLOPs first; among equals the smallest change, then the smallest model axis."""
    model = candidate.config.mesh.model
    flops = round(least_seconds_per_token(candidate, made) * 1e15)
    return flops, len(candidate.changes), model


def _worth(candidate: Candidate, made: Cluster, best: dict | None) -> bool:
    """Whether a candidate may fit and be faster than the best one so far."""
    estimate = memory_estimate(candidate.config, made.device_count).total
    if made.usable is not None and estimate > SKIP_ABOVE * made.usable:
        return False
    return best is None or least_seconds_per_token(candidate, made) < best["seconds_per_token"]


def _compiled(candidate: Candidate, made: Cluster) -> dict:
    row: dict = {
        "flags": candidate.flags,
        "changes": list(candidate.changes),
        "options": candidate.options,
        "error": "",
    }
    try:
        result = plan(candidate.config, made, options=candidate.options)
        jax.clear_caches()  # one candidate's program at a time in memory
    except MissingCompiler:
        raise
    except UserError as error:
        return {**row, "fits": False, "needed": 0, "error": str(error)}
    row |= {"fits": result["fits"] is True, "needed": result["memory"]["needed"]}
    row |= {"usable": made.usable, "mesh": result["mesh"], "error": result["refused"]}
    if "predicted" in result:
        predicted = result["predicted"]
        row |= {
            "mfu": predicted["mfu"],
            "step": predicted["seconds"]["step"],
            "seconds_per_token": 1 / predicted["tokens_per_second"],
        }
    return row


def _progress(
    candidate: Candidate, number: int, total: int, minutes: float, best: dict | None
) -> str:
    so_far = (
        f"best MFU {best['mfu']:.1%} with {best['flags'] or 'the given config'}" if best else ""
    )
    what = candidate.flags or "the given config"
    return f"[{number + 1}/{total}, {minutes:.1f} min] compiling {what}. {so_far}".rstrip()
