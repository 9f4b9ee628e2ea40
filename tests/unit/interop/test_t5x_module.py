"""The Linen module equals the decoder: logits, gradients, masks, cache, and T5X's requirements."""

import inspect

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning
from helpers import error, host_batch, host_params, loss_and_gradients, mesh_of
from interop_cases import case
from jax.sharding import AxisType, Mesh, NamedSharding
from reference import logits as reference_logits

from paxlike.config import ModelConfig, QuantConfig, UserError
from paxlike.interop.t5x import decoder_module
from paxlike.interop.t5x_layout import leaves

pytestmark = pytest.mark.slow

KINDS = {
    "palm": {},
    "grouped queries, untied": {"kv_heads": 2, "head": "untied"},
    "serial": {"block": "serial", "norm": "rms", "kv_heads": 8},
    "ungated": {"feed_forward": "relu2", "head_dim": 6},
}
SIGNATURE = (
    "decoder_input_tokens, decoder_target_tokens, decoder_segment_ids=None, "
    "decoder_positions=None, decoder_causal_attention=None, *, enable_dropout=True, decode=False, "
    "max_decode_length=None, prefill=False, prefill_lengths=None"
)
RULES = (
    ("batch", "data"), ("vocab", "model"), ("embed", None), ("mlp", "model"), ("heads", "model"),
    ("kv", None), ("joined_kv", "model"), ("relpos_buckets", None), ("abspos_buckets", None),
    ("length", None), ("layers", None), ("stack", None), ("mlp_activations", None),
)  # fmt: skip
"""T5X's standard rules for one-dimensional partitioning."""


def t5x_tree(config, params) -> dict:
    """Converts parameters in paxlike's layout to the module's tree."""
    tree = {}
    for leaf in leaves(config.model):
        array = params
        for name in leaf.param.split("/"):
            array = array[name]
        node = tree
        for name in leaf.path[:-1]:
            node = node.setdefault(name, {})
        node[leaf.path[-1]] = np.reshape(
            array if leaf.layer is None else array[leaf.layer], leaf.shape
        )
    return tree


@pytest.fixture(scope="module", params=list(KINDS))
def built(request):
    config = case(**KINDS[request.param])
    params = host_params(config)
    return config, params, decoder_module(config), {"params": t5x_tree(config, params)}


def reference(config, params, batch) -> np.ndarray:
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    return reference_logits(wide, config.model, batch.tokens, batch.segments)


def test_the_same_logits(built):
    config, params, module, variables = built
    for segments in (False, True):
        batch = host_batch(config, B=2, T=12, segments=segments)
        found = jax.jit(module.apply)(
            variables, batch.tokens, batch.targets, decoder_segment_ids=batch.segments
        )
        np.testing.assert_allclose(found, reference(config, params, batch), atol=2e-5)


def test_the_same_gradients():
    config = case()
    params, batch, module = (
        host_params(config),
        host_batch(config, B=2, T=8),
        decoder_module(config),
    )

    def loss(tree):
        logits = module.apply({"params": tree}, batch.tokens, batch.targets, enable_dropout=False)
        log_z = jax.nn.logsumexp(logits, axis=-1)
        picked = jnp.take_along_axis(logits, jnp.maximum(batch.targets, 0)[..., None], axis=-1)[
            ..., 0
        ]
        losses = (log_z - picked + config.train.z_loss * log_z**2) * (batch.targets >= 0)
        return losses.sum() / (batch.targets >= 0).sum()

    value, found = jax.value_and_grad(loss)(t5x_tree(config, params))
    expected_value, expected = loss_and_gradients(config, mesh_of(), params, batch)
    assert abs(value - expected_value) < 1e-5
    for path, gradient in jax.tree_util.tree_leaves_with_path(t5x_tree(config, expected)):
        array = found
        for key in path:
            array = array[key.key]
        assert error(array, gradient) < 1e-4, path


def test_the_documented_signature_and_axes(built):
    config, _, module, variables = built
    signature = inspect.signature(type(module).__call__)
    words = []
    for parameter in list(signature.parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(
            parameter.name
            if parameter.default is parameter.empty
            else f"{parameter.name}={parameter.default}"
        )
    assert ", ".join(words) == SIGNATURE
    # DecoderOnlyModel.get_initial_variables calls it with floats, all ones.
    initial = module.init(
        jax.random.key(0), jnp.ones((2, 8)), jnp.ones((2, 8)), enable_dropout=False
    )
    assert set(initial) == {"params", "params_axes"}
    shapes = jax.tree.map(np.shape, flax.core.unfreeze(initial["params"]))
    assert shapes == jax.tree.map(np.shape, variables["params"])
    names = flax.traverse_util.flatten_dict(
        flax.core.unfreeze(partitioning.get_axis_names(initial["params_axes"]))
    )
    assert names == {
        leaf.path: jax.sharding.PartitionSpec(*leaf.axes) for leaf in leaves(config.model)
    }
    assert {axis for leaf in leaves(config.model) for axis in leaf.axes} <= {
        name for name, _ in RULES
    }


@pytest.mark.parametrize("kind", ["palm", "serial"])
def test_partitioned_by_the_standard_rules(kind):
    config = case(**KINDS[kind], **({"vocab_size": 320} if kind == "palm" else {}))
    params, module, batch = (
        host_params(config),
        decoder_module(config),
        host_batch(config, B=4, T=8),
    )
    mesh = Mesh(
        np.array(jax.devices()).reshape(2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )
    with partitioning.axis_rules(RULES):
        specs = {
            leaf.path: partitioning.logical_to_mesh_axes(leaf.axes) for leaf in leaves(config.model)
        }
    flat = flax.traverse_util.flatten_dict(t5x_tree(config, params))
    sharded = {
        path: jax.device_put(array, NamedSharding(mesh, specs[path]))
        for path, array in flat.items()
    }
    assert any(not array.sharding.is_fully_replicated for array in sharded.values())
    tree = flax.traverse_util.unflatten_dict(sharded)
    with jax.set_mesh(mesh), partitioning.axis_rules(RULES):
        found = jax.jit(module.apply)({"params": tree}, batch.tokens, batch.targets)
    np.testing.assert_allclose(found, reference(config, params, batch), atol=2e-5)


def test_a_prefix_attends_in_both_directions():
    config = case()
    module, variables = decoder_module(config), {"params": t5x_tree(config, host_params(config))}
    batch = host_batch(config, B=1, T=8)
    changed = batch.tokens.copy()
    changed[0, 3] += 1
    prefix = (np.arange(8) < 4).astype(np.int32)[None]
    for causal, earliest in ((None, 3), (prefix, 0)):
        found = [
            module.apply(variables, t, t, decoder_causal_attention=causal)
            for t in (batch.tokens, changed)
        ]
        differs = np.abs(found[0] - found[1]).max(-1)[0] > 1e-6
        assert differs.argmax() == earliest and differs[4:].all()


@pytest.mark.parametrize("kind", ["palm", "serial"])
def test_generation_with_a_cache(kind):
    """As DecoderOnlyModel.predict_batch does: create a cache, fill it with prompts, then decode."""
    config = case(**KINDS[kind])
    params = host_params(config)
    module, variables = decoder_module(config), {"params": t5x_tree(config, params)}
    batch, lengths = host_batch(config, B=2, T=10), np.array([3, 6], np.int32)
    expected = reference(config, params, batch)
    _, empty = module.apply(
        variables, batch.tokens, batch.tokens, enable_dropout=False, decode=True, mutable=["cache"]
    )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(empty["cache"]))
    prompts = np.where(np.arange(10) < lengths[:, None] + 1, batch.tokens, 0)
    _, filled = module.apply(
        {**variables, **empty},
        prompts,
        prompts,
        prefill=True,
        prefill_lengths=lengths,
        mutable=["cache"],
        enable_dropout=False,
    )
    cache = filled["cache"]
    for step in range(4):
        positions = lengths + step
        tokens = np.take_along_axis(batch.tokens, positions[:, None], 1)
        logits, new = module.apply(
            {**variables, "cache": cache},
            tokens,
            tokens,
            enable_dropout=False,
            decode=True,
            max_decode_length=10,
            mutable=["cache"],
        )
        cache = new["cache"]
        np.testing.assert_allclose(logits[:, 0], expected[np.arange(2), positions], atol=2e-5)


def test_quantized_models_raise():
    with pytest.raises(UserError, match="T5X cannot compute a model with quant.weights"):
        leaves(ModelConfig(quant=QuantConfig(weights="bitnet")))
