"""What a run carries from step to step: parameters, optimizer state and the step's number, born sharded."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from paxlike.config import Config
from paxlike.models.palm import init_params
from paxlike.nn.weight import Numerics
from paxlike.optim.optimizer import Optimizer
from paxlike.parallel.mesh import check_sharded


class State(NamedTuple):
    params: dict
    """Nested dict of arrays named by their letters, such as `blocks/wq_DNH` [L, D, N, H]."""
    optimizer: object
    """The optimizer's own tree; its arrays lie as their parameters do."""
    step: jax.Array
    """int32 scalar: updates made so far, and the number of the batch that comes next."""


def _initial(config: Config, numerics: Numerics, optimizer: Optimizer) -> State:
    params = init_params(config.model, numerics, config.train.seed)
    return State(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_state(config: Config, numerics: Numerics, optimizer: Optimizer) -> State:
    """A new state on the mesh in force. No array is ever whole on one device; a large one that would be is an error."""
    check_sharded(abstract_state(config, numerics, optimizer))
    return jax.jit(functools.partial(_initial, config, numerics, optimizer))()


def abstract_state(config: Config, numerics: Numerics, optimizer: Optimizer) -> State:
    """The state's shapes, dtypes and shardings on the mesh in force, without computing anything."""
    return _placed(jax.eval_shape(functools.partial(_initial, config, numerics, optimizer)))


def abstract_params(config: Config, numerics: Numerics) -> dict:
    """The same, of the parameters alone."""
    return _placed(jax.eval_shape(lambda: init_params(config.model, numerics, config.train.seed)))


def _placed(tree: object) -> object:
    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # An array that no mesh axis cuts, such as a counter, has no sharding in its type.
        spec = leaf.sharding.spec if leaf.sharding is not None else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    mesh = jax.sharding.get_mesh()
    return jax.tree.map(placed, tree)


def to_plain(state: State) -> dict:
    """The state as nested dicts of arrays with readable names, for a checkpoint that needs no library's classes."""
    plain: dict = {"params": state.params, "step": state.step, "optimizer": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.optimizer):
        *folders, name = (jax.tree_util.keystr((key,), simple=True) for key in path)
        at = plain["optimizer"]
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = leaf
    return plain


def from_plain(plain: dict, like: State) -> State:
    """Undoes `to_plain`. `like` gives the optimizer's tree."""
    leaves = []
    paths, tree = jax.tree_util.tree_flatten_with_path(like.optimizer)
    for path, _ in paths:
        at = plain["optimizer"]
        for key in path:
            at = at[jax.tree_util.keystr((key,), simple=True)]
        leaves.append(at)
    return State(plain["params"], jax.tree_util.tree_unflatten(tree, leaves), plain["step"])
