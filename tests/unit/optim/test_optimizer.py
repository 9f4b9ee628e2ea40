"""Optimizers compared with float64 NumPy from the papers' formulas; on a mesh; in every dtype."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.config import OptimConfig
from paxlike.optim.optimizer import apply_updates, global_norm, make_optimizer

NAMES = ["palm", "adafactor", "adamw", "lion"]
LAYERS = 3
# Shape in one layer and PartitionSpec; the factored moment needs two axes of 128.
BLOCK = {
    "wi_DF": ((128, 144), P("data", "model")),
    "wo_NHD": ((4, 128, 160), P("model", None, "data")),
    "wk_DKH": ((128, 1, 4), P(("model", "data"), None, None)),
    "feed_forward_scale_D": ((128,), P("model")),
}
OUTSIDE = {"embedding_VD": ((256, 128), P("model", "data")), "scale_D": ((128,), P("model"))}


def optim(name: str, clip: float = 1.0) -> OptimConfig:
    """Settings in which every term matters: the rate decays from step 3, weight decay is strong."""
    return OptimConfig(
        name=name,
        learning_rate=0.1,
        warmup_steps=2,
        beta1=0.8,
        beta2=0.95,
        epsilon=1e-3,
        clip=clip,
        weight_decay=0.3 if name in ("adamw", "lion") else 0.0,
    )


def draw(rng: np.random.Generator, layer_sizes: list[float]) -> dict:
    """A stacked tree. Layers differ in scale, so a statistic over the whole stack would differ."""
    sizes = np.array(layer_sizes, np.float32)
    blocks = {
        name: rng.normal(size=(LAYERS, *shape)).astype(np.float32)
        * sizes.reshape(-1, *[1] * len(shape))
        for name, (shape, _) in BLOCK.items()
    }
    outside = {
        name: rng.normal(size=shape).astype(np.float32) for name, (shape, _) in OUTSIDE.items()
    }
    return {**outside, "blocks": blocks}


def unstacked(tree: dict) -> dict:
    """The same parameters as a list of layers: one dict per layer instead of "blocks"."""
    layers = {
        f"layer{i}": {name: x[i] for name, x in tree["blocks"].items()} for i in range(LAYERS)
    }
    return {name: x for name, x in tree.items() if name != "blocks"} | layers


def flat(tree: dict) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x, np.float64)
        for path, x in leaves
    }


@functools.cache
def run_data():
    """Parameters (one layer is 0) and six gradients: some below the clipping norm, one 100 times
    it.

    Some rows of the embedding, and all of one layer's wo_NHD, always have a zero gradient.
    """
    rng = np.random.default_rng(0)
    params = draw(rng, [0.0, 1.0, 5.0])
    gradients = [
        jax.tree.map(lambda g, s=s: g * s, draw(rng, [1.0, 0.1, 3.0]))
        for s in (1, 1, 1e-4, 1, 100, 1)
    ]
    for gradient in gradients:
        gradient["embedding_VD"][:9] = 0
        gradient["blocks"]["wo_NHD"][2] = 0
    return params, gradients


@functools.cache
def trained(name: str, clip: float = 1.0) -> dict:
    """Stacked parameters after training with `run_data` on one device."""
    return train(optim(name, clip), *run_data())


def train(config: OptimConfig, params: dict, gradients: list[dict]) -> dict:
    """Parameters after one step per gradient. Asserts that types and shardings do not change."""
    optimizer = make_optimizer(config, steps=len(gradients))

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(optimizer.init)(params)
    before = types((params, state))
    for gradient in gradients:
        params, state = step(params, state, gradient)
        assert types((params, state)) == before
    return params


def types(tree) -> list:
    return [jax.typeof(x) for x in jax.tree.leaves(tree)]


# ---- the papers' formulas ------------------------------------------------------------------------


def rms(x):
    return math.sqrt((x * x).mean())


def palm(config, k, rate, p, g, s):
    """Chowdhery et al. 2022, section 5; momentum as in Adafactor's implementations."""
    beta2 = 1 - k**-0.8
    s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * (g * g + 1e-30)
    s["m"] = config.beta1 * s.get("m", 0) + (1 - config.beta1) * rate * max(
        1e-3, rms(p)
    ) * g / np.sqrt(s["v"])
    return p * (1 - rate**2) - s["m"]


def adafactor(config, k, rate, p, g, s):
    """Shazeer & Stern 2018, algorithms 4 (matrices) and 5 (vectors); hyperparameters of 6."""
    beta2 = 1 - k**-0.8
    square = g * g + 1e-30
    if sum(n >= 128 for n in p.shape) < 2:
        s["v"] = beta2 * s.get("v", 0) + (1 - beta2) * square
        v = s["v"]
    else:
        # Each head (an axis before the two long ones) is a separate matrix.
        s["r"] = beta2 * s.get("r", 0) + (1 - beta2) * square.sum(-1)
        s["c"] = beta2 * s.get("c", 0) + (1 - beta2) * square.sum(-2)
        v = s["r"][..., :, None] * s["c"][..., None, :] / s["r"].sum(-1)[..., None, None]
    u = g / np.sqrt(v)
    return p - max(1e-3, rms(p)) * rate * u / max(1, rms(u))


def adamw(config, k, rate, p, g, s, decayed):
    """Loshchilov & Hutter 2019, algorithm 2."""
    s["m"] = config.beta1 * s.get("m", 0) + (1 - config.beta1) * g
    s["v"] = config.beta2 * s.get("v", 0) + (1 - config.beta2) * g * g
    m, v = s["m"] / (1 - config.beta1**k), s["v"] / (1 - config.beta2**k)
    return p - rate * (m / (np.sqrt(v) + config.epsilon) + config.weight_decay * decayed * p)


def lion(config, k, rate, p, g, s, decayed):
    """Chen et al. 2023, algorithm 2."""
    m = s.get("m", 0)
    s["m"] = config.beta2 * m + (1 - config.beta2) * g
    return p - rate * (
        np.sign(config.beta1 * m + (1 - config.beta1) * g) + config.weight_decay * decayed * p
    )


def reference(config: OptimConfig, params: dict, gradients: list[dict]) -> dict:
    p, state = flat(unstacked(params)), {}
    for k, gradient in enumerate(gradients, 1):
        g = flat(unstacked(gradient))
        norm = math.sqrt(sum((x * x).sum() for x in g.values()))
        clip_scale = config.clip / norm if config.clip and norm > config.clip else 1.0
        rate = config.learning_rate * (
            1 if k <= config.warmup_steps else math.sqrt(config.warmup_steps / k)
        )
        for name in p:
            rule = {"palm": palm, "adafactor": adafactor, "adamw": adamw, "lion": lion}[config.name]
            extra = ("scale_" not in name,) if config.name in ("adamw", "lion") else ()
            p[name] = rule(
                config, k, rate, p[name], g[name] * clip_scale, state.setdefault(name, {}), *extra
            )
    return p


@pytest.mark.parametrize(
    "name, clip", [*((name, 1.0) for name in NAMES), ("palm", 0.0), ("adafactor", 0.0)]
)
def test_equals_the_papers_formulas(name, clip):
    params, gradients = run_data()
    actual, expected = (
        flat(unstacked(trained(name, clip))),
        reference(optim(name, clip), params, gradients),
    )
    assert actual.keys() == expected.keys()
    start = flat(unstacked(params))
    for key in expected:
        # The tolerance is relative to the change in six steps: parameters of all sizes count
        # equally.
        change = np.abs(expected[key] - start[key]).max()
        np.testing.assert_allclose(
            actual[key], expected[key], rtol=2e-6, atol=2e-5 * change, err_msg=key
        )


@pytest.mark.parametrize("name", ["palm", "adafactor"])
def test_a_stack_and_a_list_of_layers_get_equal_updates(name):
    params, gradients = run_data()
    stacked = flat(unstacked(trained(name)))
    unstacked_params = flat(
        train(optim(name), unstacked(params), [unstacked(g) for g in gradients])
    )
    for key in unstacked_params:
        np.testing.assert_allclose(
            stacked[key], unstacked_params[key], rtol=1e-5, atol=1e-6, err_msg=key
        )


def test_the_first_update_of_palm_has_the_size_of_rate_times_parameter():
    """beta2 is 0 at step 1: every element changes by (1 - beta1) * rate * RMS(layer)."""
    params, gradients = run_data()
    config = OptimConfig(learning_rate=1e-2)
    optimizer = make_optimizer(config, 10)
    gradient = jax.tree.map(lambda g: np.where(g == 0, 1, g), gradients[0])
    updates, _ = jax.jit(optimizer.update)(gradient, jax.jit(optimizer.init)(params), params)
    change = updates["blocks"]["wi_DF"] + 1e-4 * params["blocks"]["wi_DF"]
    for layer in range(LAYERS):
        expected = 0.1 * 1e-2 * max(1e-3, rms(params["blocks"]["wi_DF"][layer]))
        np.testing.assert_allclose(np.abs(change[layer]), expected, rtol=1e-4)


# ---- on a mesh -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 2, 4), ("pod", "data", "model"), axis_types=(AxisType.Explicit,) * 3)


def place(tree: dict, mesh) -> dict:
    places = {name: p for name, (_, p) in OUTSIDE.items()}
    places["blocks"] = {name: P(None, *p) for name, (_, p) in BLOCK.items()}
    return jax.tree.map(lambda x, p: jax.device_put(x, NamedSharding(mesh, p)), tree, places)


@pytest.mark.parametrize("name", NAMES)
def test_a_sharded_model_gets_the_same_updates(name, mesh):
    params, gradients = run_data()
    alone = flat(trained(name))
    with jax.set_mesh(mesh):
        sharded = train(optim(name), place(params, mesh), [place(g, mesh) for g in gradients])
    for key, x in flat(sharded).items():
        np.testing.assert_allclose(x, alone[key], rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_state_is_created_with_the_parameters_sharding(name, mesh):
    with jax.set_mesh(mesh):
        params = place(run_data()[0], mesh)
        state = jax.jit(make_optimizer(optim(name), 10).init)(params)
    places = {
        jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    unfactored = 0
    for path, x in jax.tree_util.tree_leaves_with_path(state):
        if x.ndim == 0:
            continue
        key = jax.tree_util.keystr(path)
        p = next(
            p
            for name, p in places.items()
            if name in key and ("blocks" in name) == ("blocks" in key)
        )
        dims, state_dims = (
            list(zip(p.shape, p.sharding.spec, strict=True)),
            list(zip(x.shape, x.sharding.spec, strict=True)),
        )
        removed = (
            [dims[:i] + dims[i + 1 :] for i in range(len(dims))] if name == "adafactor" else []
        )
        assert state_dims == dims or state_dims in removed, (
            f"{key}: {x.shape} {x.sharding.spec} of {p.shape} {p.sharding.spec}"
        )
        unfactored += state_dims == dims
    if name == "adafactor":
        assert unfactored == 3  # both norm scales and wk_DKH; the three large matrices are factored
        factors = state["moments"]["blocks"]["wo_NHD"]
        assert jax.typeof(factors["row"]).sharding.spec == P(None, "model", None)
        assert jax.typeof(factors["column"]).sharding.spec == P(None, "model", "data")


def test_palms_compiled_update_communicates_only_sums(mesh):
    """Only one number per layer and RMS, and norms, are communicated; no weight or moment is."""
    with jax.set_mesh(mesh):
        params = place(run_data()[0], mesh)
        optimizer = make_optimizer(optim("palm"), 10)
        text = (
            jax.jit(optimizer.update)
            .lower(params, optimizer.init(params), params)
            .compile()
            .as_text()
        )
    collectives = re.findall(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", text)
    assert {kind for _, kind in collectives} == {"all-reduce"}
    for result, _ in collectives:
        for dims in re.findall(r"\[([\d,]*)\]", result):
            assert math.prod(int(n) for n in dims.split(",") if n) <= LAYERS, result


def test_global_norm_is_over_the_whole_tree():
    params, _ = run_data()
    expected = math.sqrt(sum((x * x).sum() for x in flat(params).values()))
    assert float(global_norm(params)) == pytest.approx(expected, rel=1e-6)


def test_moments_are_float32_for_any_parameter_dtype():
    params = {
        "blocks": {"wq_DNH": jnp.ones((LAYERS, 8, 4, 2), jnp.bfloat16)},
        "scale_D": jnp.ones(8, jnp.bfloat16),
    }
    for name in ("palm", "adafactor", "adamw", "lion"):
        optimizer = make_optimizer(optim(name), 10)
        state = jax.eval_shape(optimizer.init, params)
        updates, new = jax.eval_shape(optimizer.update, params, state, params)
        assert new == state, name  # shapes and dtypes
        assert {x.dtype.name for x in jax.tree.leaves(state["moments"])} == {"float32"}, name
        assert {x.dtype.name for x in jax.tree.leaves(updates)} == {"bfloat16"}, name
