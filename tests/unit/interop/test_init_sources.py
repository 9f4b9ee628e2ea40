"""Runs and Hugging Face folders give every parameter of the model, onto any mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import error, flat, host_params, mesh_of, numerics_of
from hf_folders import write_hf_folder
from interop_cases import KINDS, PROMPT, case, expected_logits, make_run

from paxlike.config import InitConfig, QuantConfig, UserError
from paxlike.interop.init_sources import open_source
from paxlike.interop.t5x import to_t5x
from paxlike.models.decoder import init_params as init
from paxlike.optim.optimizer import make_optimizer
from paxlike.parallel.axes import is_stacked
from paxlike.training import init_params
from paxlike.training.init_plan import changed_fields, make_plan
from paxlike.training.state import abstract_state, make_state


def loaded(config, source, mesh, init=None):
    """The first state on the mesh."""
    program = numerics_of(config), make_optimizer(config.optim, 10)
    with jax.set_mesh(mesh):
        like = abstract_state(config, *program)
        plan = make_plan(config.model, list(flat(like.params)), init or InitConfig(), source)
        params = init_params.first_params(config, program[0], like.params, plan.origins)
        state = make_state(config, *program, params)
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert found.sharding == expected.sharding and found.dtype == expected.dtype
    return state


def without_padding(name: str, x: np.ndarray, vocab: int) -> np.ndarray:
    return {"embedding_VD": x[:vocab], "head_DV": x[..., :vocab]}.get(name, x)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_family_is_read_by_layer_and_part(kind, tmp_path):
    config = case(**KINDS[kind])
    params = flat(host_params(config))
    source = open_source(str(write_hf_folder(tmp_path / "hf", config, host_params(config))), config)
    changed = set(changed_fields(config.model, source.model)) - {"vocab_multiple", "attention"}
    if changed == {"logit_scale"}:  # a family without one has it in the last norm
        for name in params.keys() & {"scale_D", "norm_bias_D"}:
            offset = config.model.norm_offset
            params[name] = (params[name] + offset) * config.model.logits_factor - offset
    else:
        assert not changed
    for name, whole in params.items():
        whole = without_padding(name, whole, config.model.vocab_size)
        for layer in range(len(whole)) if is_stacked(name) else [None]:
            expected = whole if layer is None else whole[layer]
            part = tuple(slice(size // 4, size // 2 + 1) for size in expected.shape)
            found = source.param(name, layer)[part]
            np.testing.assert_allclose(found, expected[part], rtol=2e-7, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "layer_by_layer"), [("run", False), ("hf", True)])
def test_parameters_arrive_sharded_with_a_new_optimizer(
    form, layer_by_layer, tmp_path, monkeypatch
):
    monkeypatch.setattr(init_params, "AT_ONCE", 0 if layer_by_layer else 2**30)
    config = case(**KINDS["llama"])
    params = host_params(config)
    make = {"run": make_run, "hf": write_hf_folder}[form]
    source = open_source(str(make(tmp_path / "source", config, params=params)), config)
    state = loaded(config, source, mesh_of(1, 2, 4))
    for name, expected in flat(params).items():
        found = without_padding(name, np.asarray(flat(state.params)[name]), 300)
        assert np.array_equal(found, without_padding(name, expected, 300)), name
    assert int(state.step) == 0
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state.optimizer))


def repeated_heads(config, times: int) -> dict:
    """Parameters in which every `times` key/value heads in a row are equal."""
    params = host_params(config)
    for name in ("wk_DKH", "wv_DKH", "bk_KH", "bv_KH"):
        if name in params["blocks"]:
            axis = params["blocks"][name].ndim - 2
            heads = params["blocks"][name].take(range(0, config.model.kv_heads, times), axis)
            params["blocks"][name] = heads.repeat(times, axis)
    return params


@pytest.mark.slow
def test_equal_heads_a_new_head_new_ids_and_biases_keep_the_logits(tmp_path):
    old = case(kv_heads=8, attention_bias="qkv", qk_norm="head", head="tied")
    params = repeated_heads(old, 4)
    source = open_source(str(make_run(tmp_path / "run", old, params=params)), old)
    changes = {"kv_heads": 2, "attention_bias": "qkvo", "head": "untied", "vocab_size": 310}
    config = case(**{**changes, "qk_norm": "head"})
    found = jax.device_get(loaded(config, source, mesh_of(1, 1, 2)).params)
    assert found["blocks"]["wk_DKH"].shape[2] == 2
    before, after = expected_logits(old, params), expected_logits(config, found)
    assert error(after[:, :300], before) < 1e-6
    mean = before.mean(-1, keepdims=True)
    np.testing.assert_allclose(after[:, 300:], np.broadcast_to(mean, (len(PROMPT), 10)), atol=1e-5)


@pytest.mark.parametrize("how", ["mean", "first"])
def test_latent_weights_of_a_quantized_run_are_pooled(how, tmp_path):
    old = case(kv_heads=8, quant=QuantConfig("bitnet"))
    params = host_params(old)
    source = open_source(str(make_run(tmp_path / "run", old, params=params)), old)
    model = dataclasses.replace(old.model, kv_heads=2)
    plan = make_plan(model, list(flat(params)), InitConfig("run", kv_heads=how), source)
    for name in ("blocks/wk_DKH", "blocks/wv_DKH"):
        groups = flat(params)[name][1].reshape(32, 2, 4, 4)
        expected = groups.mean(2) if how == "mean" else groups[:, :, 0]
        found = plan.origins[name].read(1)[:32, 0:2, 0:4]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_new_parameters_are_those_of_a_new_run():
    config = case(head="untied")
    with jax.set_mesh(mesh_of()):
        ((name, found),) = init_params._new_params(config, numerics_of(config), ["head_DV"]).items()
        fresh = jax.jit(lambda: init(config.model, numerics_of(config), 0)["head_DV"])()
    assert name == "head_DV" and np.array_equal(found, fresh)


@pytest.mark.parametrize("kind", ["palm, grouped queries, untied", "llama, tied"])
def test_a_t5x_checkpoint_tells_its_sizes(kind, tmp_path):
    config = case(**KINDS[kind])
    to_t5x(make_run(tmp_path / "run", config), tmp_path / "t5x")
    path = tmp_path / "t5x" / "checkpoint_7"
    other = dataclasses.replace(
        config.model, layers=1, d_model=16, heads=2, kv_heads=1, d_ff=8, vocab_size=200,
        block="parallel", feed_forward="relu", head="tied",
    )  # fmt: skip
    found = open_source(str(path), dataclasses.replace(config, model=other)).model
    stored = config.model.vocab_rows
    expected = dataclasses.replace(config.model, vocab_size=stored, vocab_multiple=1)
    assert dataclasses.replace(found, feed_forward="swiglu") == expected
    assert found.gated
    source = open_source(str(path), config)
    assert source.model == config.model and source.dtype == "float32"
    for name, whole in flat(host_params(config)).items():
        for layer in range(2) if is_stacked(name) else [None]:
            expected = whole if layer is None else whole[layer]
            assert np.array_equal(source.param(name, layer), expected), name
    with pytest.raises(UserError, match="T5X checkpoint, which has no config.*Leave out"):
        open_source(str(path), dataclasses.replace(config, init=InitConfig(str(path), True)))
    with pytest.raises(UserError, match=f"has T5X checkpoints; give one: {path}"):
        open_source(str(path.parent), config)
    (path / "checkpoint").write_bytes(b"no msgpack")
    with pytest.raises(UserError, match="is not a T5X checkpoint"):
        open_source(str(path), config)


def test_sources_that_are_none(tmp_path):
    config = case()
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    (tmp_path / "untrained" / "checkpoints").mkdir(parents=True)
    (tmp_path / "untrained" / "config.json").write_text("{}")
    for name, message in (
        ("absent", "there is no .*absent. Give a Hugging Face directory, a run directory or"),
        ("empty", r"config\.json cannot be read"),
        ("other", "neither a Hugging Face directory .* nor a run directory"),
        ("untrained", "there is no checkpoint in .*Train the run first"),
    ):
        with pytest.raises(UserError, match=message):
            open_source(str(tmp_path / name), config)
