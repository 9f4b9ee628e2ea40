"""T5X checkpoints: written and read by the format's rules; a run resumes after both conversions."""

import dataclasses
import json

import numpy as np
import pytest
import tensorstore
from flax import serialization
from helpers import host_params, model_config
from interop_cases import case, make_run

from paxlike.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    ExpertsConfig,
    LogConfig,
    OptimConfig,
    TrainConfig,
    UserError,
)
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.store import open_store
from paxlike.interop.t5x import from_t5x, to_t5x
from paxlike.interop.t5x_layout import leaves
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.loop import train
from paxlike.training.run_directory import read_config


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for number in range(8):
        (folder / f"{number}.txt").write_text(f"text {number} of words\n" * 60)
    prepare(
        PrepareConfig(
            (str(folder / "*.txt"),),
            str(folder / "store"),
            tokenizer="bytes",
            validation_fraction=0.2,
        )
    )
    return open_store(folder / "store")


def array_of(params: dict, leaf) -> np.ndarray:
    for name in leaf.param.split("/"):
        params = params[name]
    return np.reshape(params if leaf.layer is None else params[leaf.layer], leaf.shape)


def write_checkpoint_in_format(
    folder, config, params, moments: bool, step: int = 7, change=lambda index: None
):
    """Writes a checkpoint like T5X's checkpointer: gzip, small chunks, inline norms and step."""
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
        tensorstore.open({**spec, "kvstore": kvstore}, create=True, open=True).result().write(
            array
        ).result()
        return tensorstore.Spec(
            {**spec, "kvstore": {"driver": "file", "path": f"{name}/"}}
        ).to_json()

    target, states = {}, {}
    for leaf in leaves(config.model):
        node, state_node = target, states
        for name in leaf.path[:-1]:
            node, state_node = node.setdefault(name, {}), state_node.setdefault(name, {})
        array = array_of(params, leaf)
        node[leaf.path[-1]] = leaf_of(("target", *leaf.path), array)
        state = {name: np.zeros((1,), np.float32) for name in ("v_row", "v_col", "v", "m")}
        if moments:
            state |= {
                m: leaf_of(("state", "param_states", *leaf.path, m), array * k)
                for m, k in (("m", 2), ("v", 3))
            }
        state_node[leaf.path[-1]] = state
    index = {
        "version": 3,
        "optimizer": {"target": target, "state": {"step": np.int32(step), "param_states": states}},
    }
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


@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 2, "head": "untied", "block": "serial", "feed_forward": "gelu"}]
)
def test_a_written_checkpoint_follows_the_format(changes, tmp_path):
    config = case(**changes)
    converted = to_t5x(make_run(tmp_path / "run", config), tmp_path / "out")
    folder = tmp_path / "out" / "checkpoint_7"
    assert converted.checked == "step 7" and "optimizer state was not written" in converted.notes[0]
    index = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    assert index["version"] == 3 and index["optimizer"]["state"]["step"] == 7
    for leaf in leaves(config.model):
        node = index["optimizer"]["target"]
        for name in leaf.path:
            node = node[name]
        # What T5X's reader needs in a spec. It removes chunks and compressor and prepends its
        # folder.
        spec = tensorstore.Spec(node).to_json()
        assert {"chunks", "compressor", "shape"} <= set(spec["metadata"]) and spec["kvstore"][
            "driver"
        ] == "file"
        assert spec["kvstore"]["path"] == ".".join(("target", *leaf.path)) + "/"
        del spec["metadata"]["chunks"], spec["metadata"]["compressor"]
        spec["kvstore"]["path"] = str(folder / spec["kvstore"]["path"])
        found = tensorstore.open(spec, open=True).result().read().result()
        np.testing.assert_array_equal(found, array_of(host_params(config), leaf))


@pytest.mark.parametrize("moments", [False, True])
def test_a_checkpoint_in_the_format_is_read(moments, store, tmp_path):
    config = palm_case(store)
    params = host_params(config)
    converted = from_t5x(
        write_checkpoint_in_format(tmp_path, config, params, moments),
        config,
        store,
        tmp_path / "run",
    )
    stored = CheckpointReader(tmp_path / "run" / "checkpoints")
    assert stored.step == 7 and read_config(tmp_path / "run") == config
    assert bool(converted.notes) != moments and stored.has_optimizer() == moments
    assert (tmp_path / "run" / "data.json").exists() == moments
    for leaf in leaves(config.model):
        expected = array_of(params, leaf)
        np.testing.assert_array_equal(
            stored.param(leaf.param, leaf.layer).reshape(leaf.shape), expected
        )
        if moments:
            for name, k in (("momentum", 2), ("second", 3)):
                found = stored.moment(leaf.param, name, leaf.layer).reshape(leaf.shape)
                np.testing.assert_array_equal(found, expected * np.float32(k))


@pytest.mark.slow
def test_a_run_resumes_after_both_conversions(store, tmp_path):
    config = palm_case(store)
    train(
        dataclasses.replace(config, train=dataclasses.replace(config.train, steps=2)),
        tmp_path / "run",
    )
    assert to_t5x(tmp_path / "run", tmp_path / "t5x").notes == []
    assert from_t5x(tmp_path / "t5x" / "checkpoint_2", config, store, tmp_path / "back").notes == []
    for folder in ("run", "back"):
        assert train(config, tmp_path / folder).step == 4
    one, other = (CheckpointReader(tmp_path / folder / "checkpoints") for folder in ("run", "back"))
    assert one.step == other.step == 4
    for leaf in leaves(config.model):
        np.testing.assert_array_equal(one.param(leaf.param), other.param(leaf.param))
        np.testing.assert_array_equal(
            one.moment(leaf.param, "second"), other.moment(leaf.param, "second")
        )


def test_an_existing_folder_is_not_overwritten(store, tmp_path):
    run = make_run(tmp_path / "run", case())
    with pytest.raises(UserError, match="already exists"):
        to_t5x(run, run)


def _without(*path):
    def change(index):
        node = index["optimizer"]["target"]["decoder"]
        for name in path[:-1]:
            node = node[name]
        del node[path[-1]]

    return change


def _with(value, *path):
    def change(index):
        node = index["optimizer"]["target"]["decoder"]
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value

    return change


def _version(index):
    index["version"] = 2


def _outside(path):
    def change(index):
        index["optimizer"]["target"]["decoder"]["layers_0"]["mlp"]["wo"]["kernel"]["kvstore"][
            "path"
        ] = path

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("layers_1", "mlp", "wo", "kernel"), "decoder/layers_1/mlp/wo/kernel is missing"),
        (
            _with(np.zeros((3, 4)), "relpos_bias", "rel_embedding"),
            r"decoder/relpos_bias/rel_embedding \(3, 4\) is unexpected",
        ),
        (
            _with(np.zeros((3, 4), np.float32), "token_embedder", "embedding"),
            r"embedding is \(3, 4\), not \(320, 32\)",
        ),
        (_version, "has version 2; only version 3 is supported"),
        (lambda index: index.pop("optimizer"), "has no optimizer"),
        (_outside("../elsewhere/"), "cannot be read"),
        (_outside("/etc/"), "cannot be read"),
        (_outside("not-there/"), "cannot be read"),
    ],
)
def test_checkpoints_that_do_not_fit(change, message, store, tmp_path):
    config = palm_case(store)
    folder = write_checkpoint_in_format(tmp_path, config, host_params(config), False, change=change)
    with pytest.raises(UserError, match=message):
        from_t5x(folder, config, store, tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_7"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "serial", "norm": "rms", "norm_placement": "after"}, "no norm_placement after"),
        ({"block": "serial_local", "sliding_window": 4}, "no block serial_local"),
        ({"qk_norm": "head"}, "no qk_norm head"),
        (
            {"block": "serial_expert_heads", "experts": ExpertsConfig(4)},
            "no block serial_expert_heads",
        ),
        ({"logit_scale": 1.0}, r"no logit_scale 1\.0"),
        ({"attention_softcap": 30.0}, r"no attention_softcap 30\.0"),
        ({"learned_positions": 64}, "no learned_positions 64"),
        ({"embedding_scale": 2.0}, r"no embedding_scale 2\.0"),
        ({"attention_bias": "qkv"}, "bk_KH, bq_NH, bv_KH have no parameter"),
        ({"pattern": ("parallel", "serial")}, "repeats one kind of layer"),
    ],
)
def test_models_without_an_equivalent(changes, message):
    with pytest.raises(UserError, match=message):
        leaves(model_config(**changes).model)


def test_paths_without_a_checkpoint(store, tmp_path):
    with pytest.raises(UserError, match="Specify a folder such as checkpoint_1000"):
        from_t5x(tmp_path / "nothing", palm_case(store), store, tmp_path / "run")
    (tmp_path / "checkpoint").write_bytes(b"\xc1 is not msgpack")
    with pytest.raises(UserError, match="is not a T5X checkpoint"):
        from_t5x(tmp_path, palm_case(store), store, tmp_path / "run")
    (tmp_path / "checkpoint").write_text(json.dumps({}))
    with pytest.raises(UserError, match="is not a T5X checkpoint"):
        from_t5x(tmp_path, palm_case(store), store, tmp_path / "run")
