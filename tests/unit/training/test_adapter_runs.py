"""Runs that adapt a base: resumed bit for bit, with small checkpoints, refused on another base."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import error, flat, host_params, write_run

from paxlike.adapt.parts import split
from paxlike.api.run import open_run
from paxlike.config import (
    AdaptConfig,
    Config,
    InitConfig,
    OptimConfig,
    PrecisionConfig,
    UserError,
)
from paxlike.data.tokenizer import load_tokenizer
from paxlike.infer.stream import prompt_tokens
from paxlike.interop.adapted_runs import merge
from paxlike.interop.hf import to_hf
from paxlike.interop.init_sources import open_initial
from paxlike.parallel.mesh import make_mesh
from paxlike.training.checkpoint import write_arrays
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.loaded_run import evaluate_run, load_run, numerics_of
from paxlike.training.loop import Result, train
from paxlike.training.state import initial_params

pytestmark = pytest.mark.slow

LORA = AdaptConfig("lora", rank=2, alpha=8.0, dropout=0.1, train=("norms",), layers=(1,))


def run(config: Config, folder: Path, steps: int) -> Result:
    steps_config = dataclasses.replace(config.train, steps=steps, accumulate=2)
    config = dataclasses.replace(config, train=steps_config)
    config, source = open_initial(config, folder, frozenset())
    return train(config, folder, source)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "event" not in line]


def test_a_run_of_singular_values_keeps_their_decomposition(config, tmp_path):
    base = host_params(config)
    source = write_run(config, tmp_path / "base", base)
    adapt = AdaptConfig("singular", targets=("wq", "wdown"), layers=(1,))
    optim = OptimConfig("adamw", 0.1, "constant", warmup_steps=0)
    adapted = dataclasses.replace(config, adapt=adapt, init=InitConfig(str(source)), optim=optim)
    folder = tmp_path / "parts"
    whole = run(adapted, tmp_path / "whole", 4)
    run(adapted, folder, 2)
    parts = run(adapted, folder, 4)
    for name, leaf in flat((whole.state.params, whole.state.frozen)).items():
        other = flat((parts.state.params, parts.state.frozen))[name]
        np.testing.assert_array_equal(leaf, other, err_msg=name)
    assert set(flat(whole.state.params)) == {
        "blocks/wq_singular_shift_R", "blocks/wdown_singular_shift_R"
    }  # fmt: skip

    # Loaded and merged, the weights have the shifted singular values; the others are the base's.
    shift = np.asarray(whole.state.params["blocks"]["wq_singular_shift_R"])[0]
    loaded = jax.device_get(load_run(tmp_path / "whole").params)["blocks"]
    one = base["blocks"]["wq_DNH"][1]
    u, s, v = np.linalg.svd(one.reshape(len(one), -1).astype(np.float64), full_matrices=False)
    expected = (u * np.maximum(s + shift, 0)) @ v
    assert error(loaded["wq_DNH"][1], expected.reshape(one.shape)) < 1e-4
    assert error(one, expected.reshape(one.shape)) > 1e-2
    np.testing.assert_array_equal(loaded["wq_DNH"][0], base["blocks"]["wq_DNH"][0])
    np.testing.assert_array_equal(loaded["wup_DF"], base["blocks"]["wup_DF"])
    merge(tmp_path / "whole", tmp_path / "merged")
    merged = CheckpointReader(tmp_path / "merged" / "checkpoints")
    np.testing.assert_allclose(merged.param("blocks/wq_DNH"), loaded["wq_DNH"], atol=1e-6)

    # Without its decomposition, or with another one, the run does not continue.
    frozen = whole.state.frozen["blocks"][1].items()
    other = {"blocks": {name: leaf * 1.001 for name, leaf in frozen if "_singular_" in name}}
    shutil.rmtree(folder / "derived")
    with pytest.raises(UserError, match="derived.* cannot be read"):
        run(adapted, folder, 5)
    write_arrays(folder / "derived", other)
    with pytest.raises(UserError, match="singular values of blocks/w.* differ from those of the b"):
        run(adapted, folder, 5)


def test_a_run_of_reft_is_resumed_and_evaluated_as_it_was_trained(config, tmp_path):
    source = write_run(config, tmp_path / "base", host_params(config))
    adapt = AdaptConfig("reft", rank=2, positions="f1+l3", tied=False, layers=(1,))
    optim = OptimConfig("adamw", 0.05, "constant", warmup_steps=0)
    adapted = dataclasses.replace(config, adapt=adapt, init=InitConfig(str(source)), optim=optim)
    whole, folder = run(adapted, tmp_path / "whole", 3), tmp_path / "parts"
    run(adapted, folder, 2)
    parts = run(adapted, folder, 3)
    for name, leaf in flat((whole.state.params, whole.state.optimizer)).items():
        other = flat((parts.state.params, parts.state.optimizer))[name]
        np.testing.assert_array_equal(leaf, other, err_msg=name)
    loaded = load_run(folder)
    found = evaluate_run(loaded, folder, adapted.eval.batches)
    assert parts.evaluation is not None
    assert found["loss"] == pytest.approx(parts.evaluation["loss"], rel=1e-6)
    base = evaluate_run(load_run(source), folder, adapted.eval.batches)
    assert abs(base["loss"] - found["loss"]) > 1e-4
    assert len(open_run(folder).generate(["alpha"], 2)) == 1
    with pytest.raises(UserError, match="interventions on the residual stream cannot be merged"):
        merge(folder, tmp_path / "merged")


def test_an_adapter_run_from_start_to_a_base_that_changed(config, tmp_path):
    base = host_params(config)
    source = write_run(config, tmp_path / "base", base)
    adapted = dataclasses.replace(config, adapt=LORA, init=InitConfig(str(source)))
    whole = run(adapted, tmp_path / "whole", 4)

    # Interrupted after two steps, it ends with the same bits.
    run(adapted, tmp_path / "parts", 2)
    parts = run(adapted, tmp_path / "parts", 4)
    for name, leaf in flat((whole.state.params, whole.state.optimizer)).items():
        other = flat((parts.state.params, parts.state.optimizer))[name]
        np.testing.assert_array_equal(leaf, other, err_msg=name)

    # The frozen part has the bits of the base, no moments, and no place in checkpoints.
    first, second = whole.state.frozen["blocks"]
    np.testing.assert_array_equal(first["wq_DNH"], base["blocks"]["wq_DNH"][:1])
    np.testing.assert_array_equal(second["wq_DNH"], base["blocks"]["wq_DNH"][1:])
    np.testing.assert_array_equal(whole.state.frozen["embedding_VD"], base["embedding_VD"])
    moments = set(flat(whole.state.optimizer["moments"]))
    trained = set(flat(whole.state.params))
    assert moments == {f"{name}/{m}" for name in trained for m in ("momentum", "second")}
    assert "scale_D" in trained and "blocks/wq_lora_a_DR" in trained
    assert not trained & {"embedding_VD", "blocks/wq_DNH"}

    # Loaded, the adapter is in the weights; the run alone is no complete model.
    loaded = load_run(tmp_path / "whole")
    params = jax.device_get(loaded.params)
    stored = CheckpointReader(tmp_path / "whole" / "checkpoints", trained_only=True)
    with pytest.raises(UserError, match="embedding_VD cannot be read"):
        stored.param("embedding_VD")
    a, b = stored.param("blocks/wq_lora_a_DR"), stored.param("blocks/wq_lora_b_RNH")
    assert np.abs(b).max() > 0
    expected = base["blocks"]["wq_DNH"].astype(np.float64)
    expected[1] += LORA.alpha / LORA.rank * np.einsum("DR,RNH->DNH", a[0], b[0])
    assert error(params["blocks"]["wq_DNH"], expected) < 1e-6
    np.testing.assert_array_equal(params["blocks"]["scale_D"][0], base["blocks"]["scale_D"][0])
    np.testing.assert_array_equal(params["blocks"]["scale_D"][1], stored.param("blocks/scale_D")[0])
    assert len(open_run(tmp_path / "whole").generate(["alpha"], 2)) == 1
    with pytest.raises(UserError, match="hold an adapter and not its base.*paxlike adapt merge"):
        to_hf(tmp_path / "whole", tmp_path / "hf")

    # One number of the base changes.
    base["blocks"]["wo_NHD"][0, 0, 0, 0] += 1e-3
    shutil.rmtree(source)
    write_run(config, source, base)
    for attempt in (
        lambda: run(adapted, tmp_path / "whole", 5),
        lambda: load_run(tmp_path / "whole"),
    ):
        with pytest.raises(UserError, match="was trained on another base.*fingerprint"):
            attempt()


def test_a_prefix_run_from_a_text(config, tmp_path):
    source = write_run(config, tmp_path / "base", host_params(config))
    text = "alpha beta"
    length = len(prompt_tokens(load_tokenizer(Path(config.data.store)), text))
    adapt = AdaptConfig("prefix", prefix_length=length, prefix_hidden=0, prefix_prompt=text)
    adapted = dataclasses.replace(config, adapt=adapt, init=InitConfig(str(source)))
    wrong = dataclasses.replace(adapt, prefix_length=length + 1)
    message = f"prefix_prompt has {length} tokens .*prefix_length is {length + 1}; set it to"
    with pytest.raises(UserError, match=message):
        run(dataclasses.replace(adapted, adapt=wrong), tmp_path / "wrong", 2)
    assert not (tmp_path / "wrong").exists()

    whole = run(adapted, tmp_path / "whole", 4)
    run(adapted, tmp_path / "parts", 2)
    parts = run(adapted, tmp_path / "parts", 4)
    state, other = (flat((r.state.params, r.state.optimizer)) for r in (whole, parts))
    for name, leaf in state.items():
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)
    random = dataclasses.replace(adapted, adapt=dataclasses.replace(adapt, prefix_prompt=""))
    run(random, tmp_path / "random", 1)
    assert abs(losses(tmp_path / "random")[0] - losses(tmp_path / "whole")[0]) > 1e-3

    # A checkpoint has the prefix alone, and what loads the run has it too.
    assert set(flat(whole.state.params)) == {f"blocks/prefix_{x}_QKH" for x in "kv"}
    stored = CheckpointReader(tmp_path / "whole" / "checkpoints", trained_only=True)
    with pytest.raises(UserError, match="embedding_VD cannot be read"):
        stored.param("embedding_VD")
    loaded = load_run(tmp_path / "whole")
    prefix = jax.device_get(loaded.params["blocks"]["prefix"])
    np.testing.assert_array_equal(prefix.k, stored.param("blocks/prefix_k_QKH"))
    found = evaluate_run(loaded, tmp_path / "whole", config.eval.batches)
    assert found == pytest.approx(whole.evaluation, rel=1e-5)
    assert len(open_run(tmp_path / "whole").generate(["alpha"], 2)) == 1
    with pytest.raises(UserError, match="a prefix cannot be merged"):
        merge(tmp_path / "whole", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_float32_adapters_of_a_bfloat16_base(config, tmp_path):
    adapt = AdaptConfig("lora", rank=2)
    config = dataclasses.replace(config, adapt=adapt, precision=PrecisionConfig(params="bfloat16"))
    state = run(config, tmp_path / "run", 6).state
    with jax.set_mesh(make_mesh(config.mesh)):
        base = initial_params(config, numerics_of(config))
        frozen = flat(split(config.model, adapt, base).frozen)
    assert {leaf.dtype.name for leaf in frozen.values()} == {"bfloat16"}
    for name, leaf in flat(state.frozen).items():
        np.testing.assert_array_equal(leaf, frozen[name], err_msg=name)
    assert {leaf.dtype.name for leaf in flat(state.params).values()} == {"float32"}
    found = losses(tmp_path / "run")
    assert found[-1] < found[0] - 0.05
