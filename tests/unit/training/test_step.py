"""The train step: accumulation, one compilation, metrics, and the sharding of the state."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import MeshConfig, OptimConfig
from paxlike.nn.numerics import Numerics
from paxlike.optim.optimizer import make_optimizer
from paxlike.optim.schedules import make_schedule
from paxlike.parallel.host_batches import local_rows, to_devices
from paxlike.parallel.mesh import check_sharded, make_mesh
from paxlike.training.state import abstract_state, from_plain, make_state, to_plain
from paxlike.training.step import DeviceBatch, make_train_step

pytestmark = pytest.mark.slow


@pytest.fixture
def mesh(config):
    made = make_mesh(config.mesh)
    with jax.set_mesh(made):
        yield made


def setup(config, name="adamw"):
    optim = OptimConfig(name=name, learning_rate=1e-2, schedule="constant", warmup_steps=1)
    config = dataclasses.replace(config, optim=optim)
    numerics = Numerics.of(config.model, config.precision, "cpu")
    optimizer = make_optimizer(optim, config.train.steps)
    step = make_train_step(config, numerics, optimizer, make_schedule(optim, config.train.steps))
    return (
        step,
        make_state(config, numerics, optimizer),
        abstract_state(config, numerics, optimizer),
    )


def batch(accumulate, seed=0, size=8, length=32):
    """Random sequences, the same for every `accumulate`. Some targets of the first half are -1."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, 300, (size, length + 1)).astype(np.int32)
    targets = tokens[:, 1:].copy()
    targets[: size // 2, : length // 3] = -1
    rows = local_rows(size, accumulate)
    return DeviceBatch(
        *(to_devices(x[rows], rows, size, accumulate) for x in (tokens[:, :-1], targets)), None
    )


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_big_batch(config, mesh, accumulate):
    """To 1e-6 in float32, although the accumulation steps differ in predicted tokens."""
    step, state, _ = setup(config, "palm")
    whole, whole_metrics = step(state, batch(1))
    step, state, _ = setup(config, "palm")
    parts, parts_metrics = step(state, batch(accumulate))
    for name in whole_metrics:
        np.testing.assert_allclose(
            parts_metrics[name], whole_metrics[name], rtol=1e-6, err_msg=name
        )
    # Compares PaLM's second moment, the square of the gradient. Its first moment is the gradient
    # divided by its own magnitude, for which there is no good tolerance.
    moments = zip(
        jax.tree.leaves(parts.optimizer["moments"]),
        jax.tree.leaves(whole.optimizer["moments"]),
        strict=True,
    )
    for part, big in list(moments)[1::2]:
        np.testing.assert_allclose(
            np.sqrt(part), np.sqrt(big), rtol=0, atol=1e-6 * float(np.sqrt(big).max())
        )


def test_one_compilation(config, mesh):
    step, state, _ = setup(config)
    for seed in range(3):
        state, _ = step(state, batch(1, seed))
    assert step._cache_size() == 1
    assert int(state.step) == 3


def test_metrics_are_means_over_predicted_tokens(config, mesh):
    step, state, _ = setup(config)
    _, metrics = step(state, batch(1))
    assert float(metrics["tokens"]) == 8 * 32 - 4 * (32 // 3)
    # A new model's logits are close to N(0, 1): the loss is slightly above that of uniform logits.
    assert np.log(320) < float(metrics["loss"]) < np.log(320) + 1.5
    np.testing.assert_allclose(float(metrics["z_loss"]), 1e-4 * np.log(320) ** 2, rtol=0.3)


@pytest.mark.parametrize("name", ["palm", "adamw", "adafactor", "lion"])
def test_the_state_is_sharded_as_declared_and_converts_to_plain_dicts(config, mesh, name):
    _, state, like = setup(config, name)
    for leaf, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert (
            leaf.sharding.is_equivalent_to(abstract.sharding, leaf.ndim)
            and leaf.dtype == abstract.dtype
        )
    plain = to_plain(state)
    assert set(plain) == {"params", "optimizer", "step"}
    assert set(plain["optimizer"]) == {"step", "moments"}
    back = from_plain(plain, like)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert all(a is b for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True))


def test_the_error_names_a_large_replicated_parameter(mesh):
    def placed(*spec):
        return jax.ShapeDtypeStruct(
            (4096, 2048), np.float32, sharding=NamedSharding(mesh, P(*spec))
        )

    check_sharded({"blocks": {"wup_DF": placed("data", "model")}})
    with pytest.raises(ValueError, match=r"blocks/wup_DF \(4096, 2048\) \(33,554,432 bytes\)"):
        check_sharded({"blocks": {"wup_DF": placed(None, None)}, "scale_D": placed("data", None)})


def test_bfloat16_compute_keeps_float32_parameters_and_gradients(config):
    """On a mesh with two pods, the loss differs from float32's by bfloat16's rounding."""
    losses = []
    for compute in ("float32", "bfloat16"):
        precision = dataclasses.replace(config.precision, compute=compute)
        changed = dataclasses.replace(
            config, precision=precision, mesh=MeshConfig(pod=2, data=2, model=2)
        )
        with jax.set_mesh(make_mesh(changed.mesh)):
            step, state, _ = setup(changed)
            state, metrics = step(state, batch(1))
            losses.append(float(metrics["loss"]))
            assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=5e-3)
