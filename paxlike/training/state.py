"""The train state: parameters, optimizer state and step number, created sharded."""

import functools
import math
import os
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from paxlike.accounting.units import gib
from paxlike.adapt.derived import empty, names
from paxlike.adapt.forms import FORMS
from paxlike.adapt.parts import Parts, split, with_adapter
from paxlike.config import Config, UserError
from paxlike.models.decoder import init_params
from paxlike.nn.numerics import Numerics
from paxlike.optim.optimizer import Optimizer
from paxlike.parallel.mesh import check_sharded

T = TypeVar("T")


class State(NamedTuple):
    params: dict
    """Nested dict of arrays, named by their letters: `blocks/wq_DNH` is [L, D, N, H]."""
    optimizer: object
    """The optimizer's tree; its arrays are sharded like their parameters."""
    step: jax.Array
    """int32 scalar: the number of completed updates."""
    frozen: dict = {}  # noqa: RUF012 - never changed in place
    """What is not trained (`config.adapt`): no gradient, no moments, not in checkpoints."""

    @property
    def parts(self) -> Parts:
        """All parameters, as losses are computed from them."""
        return Parts(self.params, self.frozen)


def _initial(config: Config, numerics: Numerics, optimizer: Optimizer) -> State:
    base = init_params(config.model, numerics, config.train.seed)
    return _of_base(config, optimizer, base, empty(config.model, config.adapt))


def _of_base(
    config: Config, optimizer: Optimizer, base: dict, derived: dict, start: dict | None = None
) -> State:
    parts = split(config.model, config.adapt, base, derived)
    params = with_adapter(config.model, config.adapt, parts.trained, config.train.seed)
    for group, values in (start or {}).items():
        params[group] = {**params[group], **values}
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32), parts.frozen)


def make_state(
    config: Config,
    numerics: Numerics,
    optimizer: Optimizer,
    base: dict | None = None,
    derived: dict | None = None,
    start: dict | None = None,
) -> State:
    """Creates a new state on the active mesh, sharded from the start.

    base: the parameters to adapt, which are donated; None: initial ones. derived: what the adapter
    computes from them (`adapt/derived.py`), donated; None: computed here. start: initial weights of
    the adapter, by group, in place of random ones. Raises ValueError if a large array would be
    replicated (`check_sharded`).
    """
    check_sharded(_without_derived(config, abstract_state(config, numerics, optimizer)))
    if base is None and not config.adapt.active:
        return jax.jit(functools.partial(_initial, config, numerics, optimizer))()
    if base is None:
        base = initial_params(config, numerics)
    if derived is None:
        derive = FORMS[config.adapt.kind].derive
        derived = derive(config.model, config.adapt, base, lambda line: None)
    of_base = functools.partial(_of_base, config, optimizer)
    return jax.jit(of_base, donate_argnums=(0, 1))(base, derived, start)


def _without_derived(config: Config, state: State) -> State:
    """Without what an adapter derives, which may be replicated: see docs/adapting.md."""
    own = names(config.model, config.adapt)
    frozen = {
        group: [{k: v for k, v in run.items() if k not in own} for run in runs]
        if isinstance(runs, list)
        else runs
        for group, runs in state.frozen.items()
    }
    return state._replace(frozen=frozen)


def abstract_state(config: Config, numerics: Numerics, optimizer: Optimizer) -> State:
    """Returns the state's shapes, dtypes and shardings on the active mesh, without computing it."""
    return placed(jax.eval_shape(functools.partial(_initial, config, numerics, optimizer)))


def check_fits(state: State) -> None:
    """Raises UserError if the state alone is larger than a device's memory, before anything is
    allocated: some platforms hang instead of refusing.

    state: of `abstract_state`.
    """
    needed = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    if device.platform == "cpu":
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    if limit and needed > limit:
        raise UserError(
            f"the parameters and the optimizer state need {gib(needed)} on each device, which has "
            f"{gib(limit)}. Use more devices or a smaller model (paxlike info shows its memory)."
        )


def initial_params(config: Config, numerics: Numerics) -> dict:
    """Random parameters on the active mesh, as a new run has them."""
    return jax.jit(lambda: init_params(config.model, numerics, config.train.seed))()


def stored_parameters(state: State) -> str:
    """How many parameters there are, and how many of them are trained."""
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(p)) for p in state.parts)
    counted = f"{trained + frozen:,} stored parameters"
    return f"{counted}, of which {trained:,} are trained," if frozen else counted


def abstract_params(config: Config, numerics: Numerics) -> dict:
    """Returns what `abstract_state` returns, for all parameters of the model, without adapters."""
    return placed(jax.eval_shape(lambda: init_params(config.model, numerics, config.train.seed)))


def abstract_trained(config: Config, numerics: Numerics) -> dict:
    """Returns what `abstract_state` returns, for the trained parameters alone."""

    def trained() -> dict:
        base = init_params(config.model, numerics, config.train.seed)
        parts = split(config.model, config.adapt, base)
        return with_adapter(config.model, config.adapt, parts.trained, config.train.seed)

    return placed(jax.eval_shape(trained))


def placed(tree: T) -> T:
    """Shapes of `jax.eval_shape` with their shardings on the active mesh."""

    def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # A replicated array, such as a counter, has no sharding in its type.
        spec = leaf.sharding.spec if leaf.sharding is not None else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    mesh = jax.sharding.get_mesh()
    return jax.tree.map(one, tree)


def to_plain(state: State) -> dict:
    """Converts the state to nested dicts of arrays, so that checkpoints depend on no classes."""
    plain: dict = {"params": state.params, "step": state.step, "optimizer": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer):
        *folders, name = (jax.tree_util.keystr((key,), simple=True) for key in path)
        node = plain["optimizer"]
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return plain


def from_plain(plain: dict, like: State) -> State:
    """The inverse of `to_plain`. `like` supplies the optimizer's tree structure, and the shapes of
    the frozen part, which no checkpoint has."""
    leaves = []
    paths, tree = jax.tree_util.tree_flatten_with_path(like.optimizer)
    for path, _ in paths:
        node = plain["optimizer"]
        for key in path:
            node = node[jax.tree_util.keystr((key,), simple=True)]
        leaves.append(node)
    optimizer = jax.tree_util.tree_unflatten(tree, leaves)
    return State(plain["params"], optimizer, plain["step"], like.frozen)
