"""Shifted singular values: losses and gradients follow from the dense weights, on every mesh."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from adapt_cases import config_of, gradients_on, layer_collectives, parts_on_mesh
from helpers import error, flat, host_batch, host_params, loss_and_gradients, mesh_of, numerics_of

from paxlike.accounting.adapted_parameters import trained_count
from paxlike.accounting.hlo_collectives import added
from paxlike.accounting.memory import memory_estimate
from paxlike.adapt.merge import merged
from paxlike.adapt.singular import derive
from paxlike.architecture.singular import decompositions
from paxlike.config import AdaptConfig, Config, MeshConfig, QuantConfig, load
from paxlike.training.state import abstract_state
from paxlike.training.step import Program, abstract_batch

pytestmark = pytest.mark.slow

SINGULAR = AdaptConfig("singular")


def matrices(config: Config) -> list[tuple]:
    """(kernel, its decomposition) of the adapted kernels."""
    return list(decompositions(config.model, config.adapt)["blocks"])


def decomposed(config: Config, base: dict) -> dict:
    """NumPy's decompositions, computed in float64 and rounded."""
    found = {}
    for kernel, d in matrices(config):
        stack = base["blocks"][kernel.name].astype(np.float64)
        L, rank = len(stack), d.shift.shape(config.model)[0]
        rows = np.prod(d.left.shape(config.model)) // rank
        parts = np.linalg.svd(stack.reshape(L, rows, -1), full_matrices=False)
        for spec, part in zip(d, parts, strict=False):
            shape = (L, *spec.shape(config.model))
            found[spec.name] = part.reshape(shape).astype(np.float32)
    return {"blocks": found}


def shifts_of(config: Config, derived: dict) -> dict:
    """Random shifts, of which some take a singular value below 0."""
    random = np.random.default_rng(3)
    found = {}
    for _, d in matrices(config):
        values = derived["blocks"][d.values.name]
        draw = random.uniform(-1, 1, values.shape) * values.max()
        found[d.shift.name] = draw.astype(np.float32)
        assert (values + draw < 0).any()
    return found


def dense(config: Config, base: dict, derived: dict, shifts: dict) -> dict:
    """The parameters with shifted singular values, U diag(relu(s + shift)) V^T in float64."""
    blocks = dict(base["blocks"])
    for kernel, d in matrices(config):
        left, values, right = (derived["blocks"][spec.name].astype(np.float64) for spec in d[:3])
        L, rank = values.shape
        new = np.maximum(values + shifts[d.shift.name], 0)
        product = (left.reshape(L, -1, rank) * new[:, None]) @ right.reshape(L, rank, -1)
        blocks[kernel.name] = product.reshape(blocks[kernel.name].shape).astype(np.float32)
    return {**base, "blocks": blocks}


@pytest.fixture(scope="module")
def expected():
    """(base, decompositions, shifts, loss, gradients of the shifts by the chain rule)."""
    config = config_of(SINGULAR)
    base = host_params(config)
    derived = decomposed(config, base)
    shifts = shifts_of(config, derived)
    whole = dense(config, base, derived, shifts)
    plain = config_of(AdaptConfig())
    loss, gradients = loss_and_gradients(plain, mesh_of(), whole, host_batch(config), inside=True)
    found = {}
    for kernel, d in matrices(config):
        left, values, right = (derived["blocks"][spec.name].astype(np.float64) for spec in d[:3])
        L, rank = values.shape
        left, right = left.reshape(L, -1, rank), right.reshape(L, rank, -1)
        dW = gradients["blocks"][kernel.name].astype(np.float64)
        dW = dW.reshape(L, left.shape[1], right.shape[2])
        own = np.einsum("lir,lio,lro->lr", left, dW, right)
        found[f"blocks/{d.shift.name}"] = own * (values + shifts[d.shift.name] > 0)
    return base, derived, shifts, loss, found


CASES = {
    "1x1-none": ((1, 1, 1), {"remat": "none"}, False),
    "8x1-full": ((1, 8, 1), {"remat": "full"}, False),
    "1x8-attention": ((1, 1, 8), {"remat": "attention"}, False),
    "2x4-ring": ((1, 2, 4), {}, True),
    "2x2-expert2": ((1, 2, 2, 2), {}, False),
}


@pytest.mark.parametrize(("sizes", "shape", "ring"), CASES.values(), ids=CASES)
def test_gradients_follow_from_the_dense_weights(expected, sizes, shape, ring):
    base, derived, shifts, expected_loss, expected_gradients = expected
    config = config_of(SINGULAR, **shape)
    if ring:
        train = dataclasses.replace(config.train, accumulate=2)
        config = dataclasses.replace(config, train=train)
    loss, gradients = gradients_on(config, sizes, base, shifts, ring, derived)
    assert loss == pytest.approx(expected_loss, rel=5e-6)
    found = flat(gradients)
    assert set(found) == set(expected_gradients)
    errors = {name: error(found[name], value) for name, value in expected_gradients.items()}
    assert max(errors.values()) < 5e-5, errors
    assert min(np.linalg.norm(value) for value in expected_gradients.values()) > 1e-4


def test_shifts_of_zero_change_no_bit(expected):
    base, derived, shifts, _, _ = expected
    zeros = {name: np.zeros_like(value) for name, value in shifts.items()}
    loss, _ = gradients_on(config_of(SINGULAR), (1, 1, 1), base, zeros, derived=derived)
    plain = config_of(AdaptConfig())
    before, _ = loss_and_gradients(plain, mesh_of(), base, host_batch(plain), inside=True)
    assert loss == before


def merged_on(config: Config, sizes: tuple, base: dict, derived: dict, shifts: dict) -> dict:
    numerics = numerics_of(config)
    plain = dataclasses.replace(config, adapt=AdaptConfig())
    with jax.set_mesh(mesh_of(*sizes)):
        parts = parts_on_mesh(config, numerics, base, shifts, derived=derived)
        own = {"blocks": parts.frozen["blocks"][0]}
        whole = parts_on_mesh(plain, numerics, base, {}).trained
        return jax.device_get(merged(config.model, config.adapt, whole, parts.trained, own))


def test_merged_weights_have_the_shifted_singular_values(expected):
    base, derived, shifts, _, _ = expected
    config = config_of(SINGULAR)
    shifts = {name: value.copy() for name, value in shifts.items()}
    # One singular value less; and far below 0 is 0, too.
    names = {d.shift.name: d for _, d in matrices(config)}
    for name, factor in (("wq_singular_shift_R", -1), ("wup_singular_shift_R", -3)):
        shifts[name][:] = 0
        shifts[name][:, 3] = factor * derived["blocks"][names[name].values.name][:, 3]
    found = flat(merged_on(config, (1, 2, 4), base, derived, shifts))
    reference = flat(dense(config, base, derived, shifts))
    assert max(error(value, reference[name]) for name, value in found.items()) < 2e-6
    for kernel, d in matrices(config):
        matrix = found[f"blocks/{kernel.name}"][1].reshape(d.left.shape(config.model)[0], -1)
        if kernel.name.startswith("wo"):
            matrix = matrix.reshape(-1, config.model.d_model)
        values = derived["blocks"][d.values.name][1] + shifts[d.shift.name][1]
        values = np.sort(np.maximum(values, 0))[::-1]
        np.testing.assert_allclose(np.linalg.svd(matrix)[1], values, atol=2e-6 * values[0])
    for name in ("wq_DNH", "wup_DF"):
        without = base["blocks"][name].reshape(2, 32, -1)
        u, s, v = np.linalg.svd(without, full_matrices=False)
        without = without - s[:, 3, None, None] * u[:, :, 3, None] * v[:, 3, None]
        assert error(found[f"blocks/{name}"].reshape(without.shape), without) < 2e-6
        assert np.linalg.matrix_rank(without[0], tol=1e-4) == 31


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_decompositions_on_a_mesh_are_those_of_the_base(expected, sizes):
    base, derived, _, _, _ = expected
    config, lines = config_of(dataclasses.replace(SINGULAR, layers=(1,))), []
    with jax.set_mesh(mesh_of(*sizes)):
        whole = parts_on_mesh(config_of(AdaptConfig()), numerics_of(config), base, {}).trained
        found = jax.device_get(derive(config.model, config.adapt, whole, lines.append))
    assert len(lines) == len(matrices(config))
    for kernel, d in matrices(config):
        left, values, right = (found["blocks"][spec.name] for spec in d[:3])
        expected_values = derived["blocks"][d.values.name][1:]
        np.testing.assert_allclose(values, expected_values, atol=1e-5)
        rank = values.shape[-1]
        product = (left.reshape(-1, rank) * values) @ right.reshape(rank, -1)
        one = base["blocks"][kernel.name][1]
        assert error(product.reshape(one.shape), one) < 1e-5


def test_layers_send_nothing_that_full_fine_tuning_does_not_send():
    """The gradient of a kernel is summed over `data` in its layer, as where it is trained."""
    layers = layer_collectives(SINGULAR)
    assert added(layers, layer_collectives(AdaptConfig())) == []
    assert layers


def test_only_without_remat_the_shifted_weights_are_kept_for_the_backward_pass():
    """`remat none` keeps them: a copy of the parameters in every layer."""
    peaks = {}
    for remat in ("none", "dots"):
        config = config_of(SINGULAR, remat=remat, layers=16, d_ff=2048)
        with jax.set_mesh(mesh_of()):
            peaks[remat] = temporaries(config, numerics_of(config))
    kernels = 16 * 3 * 32 * 2048 * 4
    assert peaks["none"] - peaks["dots"] > kernels > 2 * peaks["dots"]


def test_the_memory_of_the_decompositions_is_that_of_their_shards():
    config = config_of(dataclasses.replace(SINGULAR, layers=(1,)))
    config = dataclasses.replace(config, mesh=MeshConfig(data=2, model=4))
    numerics = numerics_of(config)
    with jax.set_mesh(mesh_of(1, 2, 4)):
        frozen = abstract_state(config, numerics, Program.of(config, numerics).optimizer).frozen
    found = [leaf for name, leaf in frozen["blocks"][1].items() if "_singular_" in name]
    assert len(found) == 3 * len(matrices(config))
    stored = sum(4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in found)
    parts = {part.name: part.bytes for part in memory_estimate(config, 8).parts}
    assert parts["derived from the base"] == stored
    assert parts["composed weights"] == 4 * (32 * (32 * 2 + 8 * 2 + 48 * 3)) // 8


def temporaries(config: Config, numerics) -> int:
    program = Program.of(config, numerics)
    state = abstract_state(config, numerics, program.optimizer)
    short = dataclasses.replace(config, data=dataclasses.replace(config.data, sequence_length=8))
    batch = abstract_batch(short, 1, segments=False)
    return program.train_step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


def test_a_bitnet_model_is_trained_and_merged_as_the_same_model():
    config = config_of(SINGULAR, quant=QuantConfig("bitnet_b158", "code", 8), kv_heads=1)
    base = host_params(config)
    derived = decomposed(config, base)
    shifts = shifts_of(config, derived)
    loss, gradients = gradients_on(config, (1, 1, 1), base, shifts, derived=derived)
    assert min(np.linalg.norm(gradient) for gradient in flat(gradients).values()) > 1e-5
    whole = merged_on(config, (1, 1, 1), base, derived, shifts)
    plain = dataclasses.replace(config, adapt=AdaptConfig())
    expected, _ = loss_and_gradients(plain, mesh_of(), whole, host_batch(plain), inside=True)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert error(whole["blocks"]["wq_DNH"], base["blocks"]["wq_DNH"]) > 0.1


def test_the_number_of_shifts_of_palm_8b():
    """A shift for each singular value: 32 layers of 5 matrices of width 4096 and 2 of width 256."""
    assert trained_count(load("palm_8b").model, SINGULAR) == 32 * (5 * 4096 + 2 * 256) == 671_744
