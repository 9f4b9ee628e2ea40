"""T5X's checkpoints: what we write is by the format's rules, what is written by them is read, and a run goes on after it."""

import dataclasses
import json

import numpy as np
import pytest
import tensorstore
from flax import serialization
from helpers import host_params
from interop_cases import case, make_run

from paxlike.config import CheckpointConfig, DataConfig, EvalConfig, LogConfig, OptimConfig, TrainConfig, UserError
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.store import open_store
from paxlike.interop.t5x import from_t5x, to_t5x
from paxlike.interop.t5x_layout import leaves
from paxlike.train.loop import train
from paxlike.train.run import read_config
from paxlike.train.stored import Stored


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"text {number} of words\n" * 60)
    prepare(PrepareConfig((str(folder / "*.txt"),), str(folder / "store"), tokenizer="bytes", validation_fraction=0.2))
    return open_store(folder / "store")


def array_of(params: dict, leaf) -> np.ndarray:
    for name in leaf.ours.split("/"):
        params = params[name]
    return np.reshape(params if leaf.layer is None else params[leaf.layer], leaf.shape)


def write_by_the_rules(folder, config, params, moments: bool, step: int = 7, change=lambda index: None):
    """A checkpoint as T5X's checkpointer lays it out: gzip, small chunks, norms inline, step inline."""
    folder = folder / f"checkpoint_{step}"
    folder.mkdir(parents=True)

    def leaf_of(path, array):
        if array.ndim < 2:
            return array
        name = ".".join(path)
        metadata = {
            "compressor": {"id": "gzip"},
            "shape": list(array.shape),
            "chunks": [max(1, n // 2) for n in array.shape],
        }
        spec = {"driver": "zarr", "dtype": "float32", "metadata": metadata}
        kvstore = {"driver": "file", "path": str(folder / name)}
        tensorstore.open({**spec, "kvstore": kvstore}, create=True, open=True).result().write(array).result()
        return tensorstore.Spec({**spec, "kvstore": {"driver": "file", "path": f"{name}/"}}).to_json()

    target, states = {}, {}
    for leaf in leaves(config.model):
        at, state_at = target, states
        for name in leaf.path[:-1]:
            at, state_at = at.setdefault(name, {}), state_at.setdefault(name, {})
        array = array_of(params, leaf)
        at[leaf.path[-1]] = leaf_of(("target", *leaf.path), array)
        state = {name: np.zeros((1,), np.float32) for name in ("v_row", "v_col", "v", "m")}
        if moments:
            state |= {m: leaf_of(("state", "param_states", *leaf.path, m), array * k) for m, k in (("m", 2), ("v", 3))}
        state_at[leaf.path[-1]] = state
    index = {"version": 3, "optimizer": {"target": target, "state": {"step": np.int32(step), "param_states": states}}}
    change(index)
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(index))
    return folder


def palm_case(store, **changes):
    config = case(**changes)
    return dataclasses.replace(
        config,
        data=DataConfig(store=str(store.folder), sequence_length=16),
        optim=OptimConfig(name="palm", learning_rate=1e-2),
        train=TrainConfig(steps=4, batch_size=8),
        checkpoint=CheckpointConfig(every=2),
        eval=EvalConfig(batches=1),
        log=LogConfig(every=1, tensorboard=False),
    )


@pytest.mark.parametrize("words", [{}, {"kv_heads": 2, "head": "untied", "block": "serial", "feed_forward": "gelu"}])
def test_what_is_written_is_by_the_rules(words, tmp_path):
    config = case(**words)
    made = to_t5x(make_run(tmp_path / "run", config), tmp_path / "out")
    folder = tmp_path / "out" / "checkpoint_7"
    assert made.checked == "step 7" and "optimizer's state is not written" in made.notes[0]
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    assert index["version"] == 3 and index["optimizer"]["state"]["step"] == 7
    for leaf in leaves(config.model):
        at = index["optimizer"]["target"]
        for name in leaf.path:
            at = at[name]
        # What T5X's reader needs of a spec; it takes chunks and compressor out and puts its own folder before the path.
        spec = tensorstore.Spec(at).to_json()
        assert {"chunks", "compressor", "shape"} <= set(spec["metadata"]) and spec["kvstore"]["driver"] == "file"
        assert spec["kvstore"]["path"] == ".".join(("target", *leaf.path)) + "/"
        del spec["metadata"]["chunks"], spec["metadata"]["compressor"]
        spec["kvstore"]["path"] = str(folder / spec["kvstore"]["path"])
        found = tensorstore.open(spec, open=True).result().read().result()
        np.testing.assert_array_equal(found, array_of(host_params(config), leaf))


@pytest.mark.parametrize("moments", [False, True])
def test_what_is_written_by_the_rules_is_read(moments, store, tmp_path):
    config = palm_case(store)
    params = host_params(config)
    made = from_t5x(write_by_the_rules(tmp_path, config, params, moments), config, store, tmp_path / "run")
    stored = Stored(tmp_path / "run" / "checkpoints")
    assert stored.step == 7 and read_config(tmp_path / "run") == config
    assert bool(made.notes) != moments and stored.has_optimizer() == moments
    assert (tmp_path / "run" / "data.json").exists() == moments
    for leaf in leaves(config.model):
        expected = array_of(params, leaf)
        np.testing.assert_array_equal(stored.param(leaf.ours, leaf.layer).reshape(leaf.shape), expected)
        if moments:
            for name, k in (("momentum", 2), ("second", 3)):
                found = stored.moment(leaf.ours, name, leaf.layer).reshape(leaf.shape)
                np.testing.assert_array_equal(found, expected * np.float32(k))


@pytest.mark.slow
def test_a_run_goes_on_after_both_conversions(store, tmp_path):
    config = palm_case(store)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)), tmp_path / "run")
    assert to_t5x(tmp_path / "run", tmp_path / "t5x").notes == []
    assert from_t5x(tmp_path / "t5x" / "checkpoint_2", config, store, tmp_path / "back").notes == []
    for folder in ("run", "back"):
        assert train(config, tmp_path / folder).step == 4
    one, other = (Stored(tmp_path / folder / "checkpoints") for folder in ("run", "back"))
    assert one.step == other.step == 4
    for leaf in leaves(config.model):
        np.testing.assert_array_equal(one.param(leaf.ours), other.param(leaf.ours))
        np.testing.assert_array_equal(one.moment(leaf.ours, "second"), other.moment(leaf.ours, "second"))


def test_an_existing_folder_is_not_written_over(store, tmp_path):
    run = make_run(tmp_path / "run", case())
    with pytest.raises(UserError, match="exists already"):
        to_t5x(run, run)


def _without(*path):
    def change(index):
        at = index["optimizer"]["target"]["decoder"]
        for name in path[:-1]:
            at = at[name]
        del at[path[-1]]

    return change


def _with(value, *path):
    def change(index):
        at = index["optimizer"]["target"]["decoder"]
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = value

    return change


def _version(index):
    index["version"] = 2


def _outside(path):
    def change(index):
        index["optimizer"]["target"]["decoder"]["layers_0"]["mlp"]["wo"]["kernel"]["kvstore"]["path"] = path

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("layers_1", "mlp", "wo", "kernel"), "decoder/layers_1/mlp/wo/kernel is missing"),
        (
            _with(np.zeros((3, 4)), "relpos_bias", "rel_embedding"),
            r"decoder/relpos_bias/rel_embedding \(3, 4\) is extra",
        ),
        (_with(np.zeros((3, 4), np.float32), "token_embedder", "embedding"), r"embedding is \(3, 4\), not \(320, 32\)"),
        (_version, "is of version 2; version 3 can be read"),
        (lambda index: index.pop("optimizer"), "has no optimizer"),
        (_outside("../elsewhere/"), "cannot be read"),
        (_outside("/etc/"), "cannot be read"),
        (_outside("not-there/"), "cannot be read"),
    ],
)
def test_checkpoints_that_do_not_fit(change, message, store, tmp_path):
    config = palm_case(store)
    folder = write_by_the_rules(tmp_path, config, host_params(config), False, change=change)
    with pytest.raises(UserError, match=message):
        from_t5x(folder, config, store, tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_7"}


def test_no_checkpoint(store, tmp_path):
    with pytest.raises(UserError, match="Name a folder such as checkpoint_1000"):
        from_t5x(tmp_path / "nothing", palm_case(store), store, tmp_path / "run")
    (tmp_path / "checkpoint").write_bytes(b"\xc1 is no msgpack")
    with pytest.raises(UserError, match="is no T5X checkpoint"):
        from_t5x(tmp_path, palm_case(store), store, tmp_path / "run")
    (tmp_path / "checkpoint").write_text(json.dumps({}))
    with pytest.raises(UserError, match="is no T5X checkpoint"):
        from_t5x(tmp_path, palm_case(store), store, tmp_path / "run")
