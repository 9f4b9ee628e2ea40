"""Runs and Hugging Face folders give every parameter of the model, onto any mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import flat, host_params, mesh_of, numerics_of
from hf_folders import write_hf_folder
from interop_cases import KINDS, case, make_run

from paxlike.config import InitConfig, PrecisionConfig, UserError
from paxlike.interop.init_sources import open_source
from paxlike.interop.t5x import to_t5x
from paxlike.optim.optimizer import make_optimizer
from paxlike.parallel.axes import is_stacked
from paxlike.training import init_params
from paxlike.training.init_plan import make_plan
from paxlike.training.state import abstract_state, make_state


def loaded(config, source, mesh, init=None):
    """(the first state on the mesh, the state of a new run)."""
    program = numerics_of(config), make_optimizer(config.optim, 10)
    with jax.set_mesh(mesh):
        like = abstract_state(config, *program)
        plan = make_plan(config.model, list(flat(like.params)), init or InitConfig(), source)
        state = init_params.first_state(config, *program, like, plan.origins)
        new = make_state(config, *program)
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert found.sharding == expected.sharding and found.dtype == expected.dtype
    return state, new


def without_padding(name: str, x: np.ndarray, vocab: int) -> np.ndarray:
    return {"embedding_VD": x[:vocab], "head_DV": x[..., :vocab]}.get(name, x)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_family_is_read_by_layer_and_part(kind, tmp_path):
    config = case(**KINDS[kind])
    params = flat(host_params(config))
    source = open_source(str(write_hf_folder(tmp_path / "hf", config, host_params(config))), config)
    model = dataclasses.replace(config.model, vocab_multiple=source.model.vocab_multiple)
    assert source.model == dataclasses.replace(model, attention=source.model.attention)
    for name, whole in params.items():
        whole = without_padding(name, whole, config.model.vocab_size)
        for layer in range(2) if is_stacked(name) else [None]:
            expected = whole if layer is None else whole[layer]
            part = tuple(slice(size // 4, size // 2 + 1) for size in expected.shape)
            found = source.param(name, layer)[part]
            np.testing.assert_allclose(found, expected[part], rtol=2e-7, err_msg=name)


@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("form", ["run", "hf"])
def test_parameters_arrive_sharded_with_a_new_optimizer(
    form, layer_by_layer, tmp_path, monkeypatch
):
    monkeypatch.setattr(init_params, "AT_ONCE", 0 if layer_by_layer else 2**30)
    config = case(**KINDS["llama"])
    params = host_params(config)
    make = {"run": make_run, "hf": write_hf_folder}[form]
    source = open_source(str(make(tmp_path / "source", config, params=params)), config)
    state, new = loaded(config, source, mesh_of(1, 2, 4))
    for name, expected in flat(params).items():
        found = without_padding(name, np.asarray(flat(state.params)[name]), 300)
        assert np.array_equal(found, without_padding(name, expected, 300)), name
    assert int(state.step) == 0
    for found, expected in zip(
        jax.tree.leaves(state.optimizer), jax.tree.leaves(new.optimizer), strict=True
    ):
        assert np.array_equal(found, expected)


def test_converted_and_new_parameters(tmp_path):
    old = case(kv_heads=8, attention_bias="qkv", head="tied")
    repeated = host_params(old)
    blocks, groups = repeated["blocks"], {}
    for name, axis in (("wk_DKH", 2), ("wv_DKH", 2), ("bk_KH", 1), ("bv_KH", 1)):
        groups[name] = blocks[name][(slice(None),) * axis + (slice(None, None, 4),)]
        blocks[name] = groups[name].repeat(4, axis)
    source = open_source(str(make_run(tmp_path / "run", old, params=repeated)), old)
    config = case(kv_heads=2, attention_bias="qkvo", head="untied", vocab_size=310)
    config = dataclasses.replace(config, precision=PrecisionConfig(params="bfloat16"))
    state, new = loaded(config, source, mesh_of(1, 1, 2), InitConfig("run", new=("blocks/wq_DNH",)))
    found = jax.tree.map(np.asarray, state.params)
    for name, expected in groups.items():
        assert np.array_equal(found["blocks"][name], expected.astype("bfloat16")), name
    table, mean = repeated["embedding_VD"][:300], repeated["embedding_VD"][:300].mean(0)
    assert np.array_equal(found["embedding_VD"][:300], table.astype("bfloat16"))
    close = {"rtol": 1e-2, "atol": 1e-3}
    np.testing.assert_allclose(found["embedding_VD"][300:310], [mean] * 10, **close)
    scaled = np.concatenate([table, [mean] * 10]).T * 32**-0.5
    np.testing.assert_allclose(found["head_DV"][:, :310], scaled, **close)
    fresh = jax.tree.map(np.asarray, new.params)
    assert not found["blocks"]["bo_D"].any()
    assert np.array_equal(found["blocks"]["wq_DNH"], fresh["blocks"]["wq_DNH"])


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
