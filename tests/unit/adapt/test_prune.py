"""Angular distances against float64 NumPy, and which layers are dropped."""

import jax
import numpy as np
import pytest
import reference
from helpers import (
    device_batch,
    flat,
    host_batch,
    host_params,
    mesh_of,
    model_config,
    numerics_of,
    place,
    put,
)

from paxlike.adapt.prune import (
    Drop,
    angular_distances,
    best,
    check_layers,
    possible_drops,
    possible_starts,
    pruned_model,
    pruned_params,
)
from paxlike.config import Config, ModelConfig, UserError
from paxlike.data.batch import Batch
from paxlike.models.decoder import hidden_states
from paxlike.training.layer_distances import Sums, last_tokens, sums_of
from paxlike.training.objective import DeviceBatch

PATTERN = {"pattern": ("serial_local", "serial"), "sliding_window": 5, "norm": "rms"}


def measured(config: Config, sizes: tuple, params: dict, batch: Batch) -> Sums:
    with jax.set_mesh(mesh_of(*sizes)):
        placed = DeviceBatch(*(None if x is None else x[None] for x in device_batch(batch)))
        last = put("BT", last_tokens(batch)[:, None])[None]
        program = {"config": config, "numerics": numerics_of(config)}
        return jax.device_get(sums_of(place(config, params), placed, last, **program))


@pytest.mark.slow
def test_identity_layers_are_found_and_dropping_them_changes_no_bit():
    random = np.random.default_rng(3)
    layers, count = 6, 2
    start = int(random.integers(0, layers + 1))
    small, large = model_config(layers=layers), model_config(layers=layers + count)
    params, batch = host_params(small), Batch(*host_batch(small))
    inserted = {
        name: np.insert(
            stack,
            [start] * count,
            0 if name in ("wo_NHD", "wdown_FD") else random.standard_normal(stack.shape[1:]),
            axis=0,
        ).astype(np.float32)
        for name, stack in params["blocks"].items()
    }
    found = {
        sizes: measured(large, sizes, {**params, "blocks": inserted}, batch)
        for sizes in ((1, 1, 1), (1, 2, 4))
    }
    for sums in found.values():
        drops = possible_drops(large.model, sums.distances)
        drop = best(drops[count - 1])
        assert drop == Drop(start, count, 0.0)
        assert min(d.distance for d in drops[count - 1] if d.start != start) > 0
    one, other = (sums.distances / sums.samples for sums in found.values())
    np.testing.assert_allclose(one, other, atol=1e-6)

    pruned = pruned_params(large.model, {**params, "blocks": inserted}, drop)
    assert pruned_model(large.model, drop) == small.model
    for name, value in flat(params).items():
        np.testing.assert_array_equal(flat(pruned)[name], value)
    with jax.set_mesh(mesh_of()):
        streams = [
            jax.jit(lambda p, t, c=config: hidden_states(c.model, numerics_of(c), p, t))(
                place(config, of), put("BT", batch.tokens_BT)
            )
            for config, of in ((large, {**params, "blocks": inserted}), (small, pruned))
        ]
        np.testing.assert_array_equal(*jax.device_get(streams))


def reference_streams(params: dict, model: ModelConfig, tokens_T: np.ndarray) -> np.ndarray:
    """[L + 1, D] at the last token of one document, in float64."""
    x, found = params["embedding_VD"][tokens_T][None], []
    for layer in range(model.layers):
        period, index = divmod(layer, 2)
        complete = period < model.layers // 2
        stacks = params[f"blocks_{index}" if complete else f"blocks_rest_{index}"]
        block = {name: stack[period if complete else 0] for name, stack in stacks.items()}
        found.append(x[0, -1])
        x = reference.run_block(x, block, model.pattern[index], model, None, [])
    return np.stack([*found, x[0, -1]])


@pytest.mark.slow
def test_packed_rows_equal_their_longest_documents_alone_in_float64():
    """Neither padding nor other documents matter; the last period of the pattern is incomplete."""
    config = model_config(layers=3, kv_heads=2, **PATTERN)
    params, tokens = host_params(config), host_batch(config).tokens
    segments = np.zeros_like(tokens)
    documents = [(0, 9), (5, 14), (0, 16), (0, 1), (2, 12), None, (9, 16), (0, 8)]
    for row, document in enumerate(documents):
        if document is None:
            continue  # a row of padding
        begin, end = document
        segments[row, :begin] = np.arange(begin) // 4 + 1
        segments[row, begin:end] = 7
    segments[3, 1:2], segments[7, 8:] = 8, 8  # of equal lengths, the first counts
    targets = np.where(segments > 0, 5, -1).astype(np.int32)
    sums = measured(config, (1, 2, 4), params, Batch(tokens, targets, segments))
    wide = jax.tree.map(lambda x: x.astype(np.float64), params)
    expected = 0.0
    for row, (begin, end) in ((r, d) for r, d in enumerate(documents) if d):
        streams = reference_streams(wide, config.model, tokens[row, begin:end])
        units = streams / np.linalg.norm(streams, axis=-1, keepdims=True)
        expected += np.arccos(np.clip(units @ units.T, -1, 1)) / np.pi
    assert sums.samples == 7 and sums.tokens == (targets >= 0).sum()
    np.testing.assert_allclose(sums.distances, expected, atol=2e-6)
    assert (sums.distances.diagonal() == 0).all()


def test_last_tokens_of_split_rows_leave_out_padding():
    targets = np.full((3, 6), -1, np.int32)
    targets[:2, 2:] = 1
    rows = Batch(np.zeros((3, 6), np.int32), targets, None)
    assert last_tokens(rows).tolist() == [5, 5, -1]


def test_angles_are_exact_at_both_ends():
    random = np.random.default_rng(0)
    x = random.standard_normal(33).astype(np.float32)
    near = (x + 1e-4 * random.standard_normal(33)).astype(np.float32)
    across = random.standard_normal(33).astype(np.float32)
    across -= across @ x / (x @ x) * x
    vectors = np.stack([x, x, -x, 1e18 * x, near, across, 0 * x])
    with jax.set_mesh(mesh_of()):
        found = np.asarray(jax.jit(angular_distances)(vectors[:, None]))[..., 0]
    assert found[0, 1] == found[3, 3] == 0 and found[0, 2] == 1
    assert found[0, 5] == pytest.approx(0.5, abs=1e-6) and found[0, 6] == 0.5
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(found, found.T)
    a, b = (v.astype(np.float64) / np.linalg.norm(v.astype(np.float64)) for v in (x, near))
    assert found[0, 4] == pytest.approx(2 * np.arcsin(np.linalg.norm(a - b) / 2) / np.pi, rel=1e-3)
    assert found[0, 3] < 1e-6


def test_drops_keep_the_pattern():
    model = ModelConfig(layers=5, pattern=("parallel_local", "parallel"), sliding_window=4)
    assert [possible_starts(model, n) for n in range(1, 5)] == [[4], [0, 1, 2, 3], [2], []]
    assert [possible_starts(ModelConfig(layers=3), n) for n in (1, 2, 3)] == [[0, 1, 2], [0, 1], []]
    params = {
        "embedding_VD": np.ones(3),
        "blocks_0": {"w": np.array([0, 2])},
        "blocks_1": {"w": np.array([1, 3])},
        "blocks_rest_0": {"w": np.array([4])},
    }
    for start, expected in ((1, [0, 3, 4]), (3, [0, 1, 2])):
        pruned = pruned_params(model, params, Drop(start, 2, 0.0))
        found = [pruned[group]["w"].tolist() for group in ("blocks_0", "blocks_1", "blocks_rest_0")]
        assert found == [[layer] for layer in expected]
    same = pruned_params(model, params, Drop(2, 0, 0.0))
    assert jax.tree.all(jax.tree.map(np.array_equal, same, params))
    distances = np.arange(36.0).reshape(6, 6)
    assert [best(drops) for drops in possible_drops(model, distances)] == [
        Drop(4, 1, 29.0), Drop(0, 2, 2.0), Drop(2, 3, 17.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "simple", "message"),
    [
        (-1, False, "--layers is -1; 1 to 4 of the model's 6 layers can be dropped"),
        (0, False, "--layers is 0; 1 to 4"),
        (5, False, "the 2 blocks of model.pattern must remain"),
        (3, True, "does not repeat its pattern parallel_local parallel. Choose a multiple of 2"),
    ],
)
def test_what_cannot_be_dropped_is_refused(layers, simple, message):
    model = ModelConfig(layers=6, pattern=("parallel_local", "parallel"), sliding_window=4)
    check_layers(model, 2, True)
    check_layers(model, None, False)
    with pytest.raises(UserError, match=message):
        check_layers(model, layers, simple)
    with pytest.raises(UserError, match="model.layers is 1; none can be dropped"):
        check_layers(ModelConfig(layers=1), None, False)
