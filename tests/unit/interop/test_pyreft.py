"""Folders of pyreft: exported, read by its formula, imported; and what does not fit is named."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import reference
from helpers import host_params, mesh_of, model_config

from paxlike.accounting.adapted_parameters import trained_shapes
from paxlike.cli import main
from paxlike.config import AdaptConfig, Config, InitConfig, UserError, to_json
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.infer.logits import logits
from paxlike.interop import safetensors
from paxlike.interop.hf import nested
from paxlike.interop.pyreft import export, load
from paxlike.training.base import record_base
from paxlike.training.checkpoint import write_checkpoint
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.loaded_run import load_run
from paxlike.training.run_directory import read_config

pytestmark = pytest.mark.slow

LOREFT = AdaptConfig("reft", rank=2, positions="f2+l1", tied=False, layers=(1, 2))
DIREFT = AdaptConfig("reft", rank=3, form="direft", positions="l4")


def write_run(config: Config, folder: Path, params: dict) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(config))
    BytesTokenizer().save(folder / "tokenizer")
    write_checkpoint(folder / "checkpoints", {"params": params}, 0, {"step": 0})
    return folder


def adapter_run(folder: Path, adapt: AdaptConfig) -> Path:
    """The run `folder`/run with random interventions, beside its base `folder`/base."""
    config = model_config(vocab_size=270, layers=3)
    base, random = host_params(config), np.random.default_rng(3)
    source = write_run(config, folder / "base", base)
    config = dataclasses.replace(config, adapt=adapt, init=InitConfig(str(source)))
    params = {}
    for name, shape in trained_shapes(config.model, adapt):
        params[name] = random.standard_normal(shape).astype(np.float32) / 4
        if "rotate" in name and adapt.form == "loreft":
            rows = np.linalg.qr(random.standard_normal((shape[0], 32, 32)))[0]
            params[name] = rows[:, : shape[1]].astype(np.float32)
    run = write_run(config, folder / "run", nested(params))
    with jax.set_mesh(mesh_of()):
        record_base(run, config, jax.tree.map(jax.numpy.asarray, base))
    return run


def intervened(folder: Path, adapt: AdaptConfig, layer: int, x: np.ndarray) -> np.ndarray:
    """The stream after a layer, from the files, by the formulas of pyreft's classes."""
    first, last = adapt.prompt_positions
    groups = [list(range(first)), list(range(x.shape[1] - last, x.shape[1]))]
    groups = groups if not adapt.tied else [groups[0] + groups[1]]
    for number, positions in enumerate(groups):
        path = f"intkey_layer_{layer}_comp_block_output_unit_pos_nunit_1#{number}.safetensors"
        if not (folder / path).exists():
            continue
        files = safetensors.Tensors(folder, path)
        tensors = {name: files.read(name).astype(np.float64) for name in files.shapes}
        h = x[:, positions]
        if adapt.form == "loreft":
            rotated = h @ tensors["rotate_layer"]
            source = h @ tensors["weight"].T + tensors["bias"]
            change = (source - rotated) @ tensors["rotate_layer"].T
        else:
            source = h @ tensors["learned_source.weight"].T + tensors["learned_source.bias"]
            change = source @ tensors["proj_layer.weight"]
        x = x.copy()
        x[:, positions] = h + change
    return x


@pytest.mark.parametrize("adapt", [LOREFT, DIREFT], ids=["loreft", "direft"])
def test_a_folder_computes_what_the_run_does_and_is_read_back(tmp_path, adapt):
    run, folder = adapter_run(tmp_path, adapt), tmp_path / "reft"
    export(run, folder)
    tokens = np.random.default_rng(4).integers(0, 270, (1, 12))
    base = CheckpointReader(tmp_path / "base" / "checkpoints")
    loaded = load_run(run, mesh=None)
    model = loaded.config.model
    with jax.set_mesh(loaded.mesh):
        ours = logits(model, loaded.numerics, loaded.params, tokens)
    blocks = [f"blocks/{name}" for name in loaded.params["blocks"] if name != "reft"]
    names = ("embedding_VD", "scale_D", *blocks)
    params = nested({name: base.param(name).astype(np.float64) for name in names})
    after = lambda layer, x: intervened(folder, adapt, layer, x)  # noqa: E731
    theirs = reference.logits(params, model, tokens, after_block=after)
    plain = reference.logits(params, model, tokens)
    assert np.abs(ours - theirs).max() < 1e-4 * theirs.std() < 0.1 * np.abs(theirs - plain).max()

    assert "from the base's" in load(folder, tmp_path / "base", tmp_path / "again", "").checked
    found = CheckpointReader(tmp_path / "again" / "checkpoints", trained_only=True)
    stored = CheckpointReader(run / "checkpoints", trained_only=True)
    for name, _ in trained_shapes(model, adapt):
        np.testing.assert_array_equal(found.param(name), stored.param(name), err_msg=name)
    assert read_config(tmp_path / "again").adapt == adapt


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pyreft")
    export(adapter_run(folder, LOREFT), folder / "reft")
    return folder


def without_positions(settings: dict) -> None:
    del settings["positions"]


def test_positions_come_from_the_command_if_the_config_has_none(exported, tmp_path, monkeypatch):
    """As in a folder that pyreft wrote."""
    shutil.copytree(exported / "reft", tmp_path / "reft")
    change_settings(tmp_path / "reft", without_positions)
    out, base = tmp_path / "out", str(exported / "base")
    with pytest.raises(UserError, match=r"does not have the positions.*--positions f7.l7"):
        load(tmp_path / "reft", exported / "base", out, "")
    words = ["adapt", "import", str(tmp_path / "reft"), str(out), "--base", base]
    monkeypatch.setattr("sys.argv", ["paxlike", *words, "--positions", "f1+l1"])
    monkeypatch.setattr("paxlike.parallel.runtime.start", lambda **_: None)
    main()
    assert read_config(out).adapt == dataclasses.replace(LOREFT, positions="f1+l1")


def change_settings(folder: Path, change) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def named(kind: str):
    return lambda s: s.update(intervention_types=[f"<class 'pyreft.interventions.{kind}'>"] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (named("DireftIntervention"), "has <class 'pyreft.interventions.DireftIntervention'>"),
        (lambda s: s["representations"][0].__setitem__(1, "mlp_output"), "mlp_output; supported"),
        (lambda s: s["representations"][0].__setitem__(4, 8), "low_rank_dimension .*supported"),
        (lambda s: s["representations"].pop(), "each must be there once, or twice if untied"),
        (lambda s: s.update(positions="f2"), "two interventions a layer, but positions f2"),
        (lambda s: s.pop("representations"), "is not the config of interventions"),
        (lambda s: [r.__setitem__(4, 4) for r in s["representations"]], "this model needs"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent_is_named(exported, tmp_path, change, message):
    shutil.copytree(exported / "reft", tmp_path / "reft")
    change_settings(tmp_path / "reft", change)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "reft", exported / "base", tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_pickles_and_rows_that_are_not_orthonormal_are_refused(exported, tmp_path):
    shutil.copytree(exported / "reft", tmp_path / "reft")
    (path,) = (tmp_path / "reft").glob("intkey_layer_1_*#0*")
    files = safetensors.Tensors(path.parent, path.name)
    tensors = {name: files.read(name) for name in files.shapes}
    tensors["rotate_layer"] *= 1.1
    entries = [safetensors.Entry(n, v.shape, v.copy) for n, v in tensors.items()]
    safetensors.write_file(path, entries, np.dtype("float32"))
    with pytest.raises(UserError, match="columns of rotate_layer .* are not orthonormal"):
        load(tmp_path / "reft", exported / "base", tmp_path / "out", "")
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"nunit_1#0.bin\) are pickles"):
        load(tmp_path / "reft", exported / "base", tmp_path / "out", "")
