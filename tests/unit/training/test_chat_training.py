"""Training on conversations: only predicted tokens have a loss, and the run keeps the template."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from chat_cases import made_conversations, messages, write_lines
from helpers import Batch, host_params, loss_and_gradients, mesh_of, model_config
from reference import logits, losses

from paxlike.config import DataConfig, MeshConfig
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.data.sequences import Sequences
from paxlike.data.store import TEMPLATE_FILE
from paxlike.training.loop import train

pytestmark = pytest.mark.slow
LENGTH = 96
DATA = DataConfig(packing="whole", sequence_length=LENGTH)


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    """Some conversations end with the user, whose last turn nothing depends on."""
    folder = tmp_path_factory.mktemp("chats")
    records = made_conversations(40)
    for number in range(0, 40, 2):
        turns = records[number]["messages"][:2] + messages([("user", f"so {number}?")])
        records[number] = {"messages": turns}
    path = write_lines(folder / "a.jsonl", records)
    return prepare(
        PrepareConfig(
            (str(path),), str(folder / "store"), tokenizer="bytes", format="messages",
            template="plain", sequence_length=LENGTH, validation_fraction=0.2,
        )
    )  # fmt: skip


def batch_of(store) -> Batch:
    return Batch(*Sequences(store, DATA, "train").read(range(8)))


def with_token(store, folder, place, token):
    """A copy of the store where one token differs."""
    tokens = np.array(store.tokens("train"))
    tokens[place] = token
    changed = dataclasses.replace(store, folder=folder)
    for name in ("segments", "loss_mask"):
        (folder / f"train.{name}").write_bytes((store.folder / f"train.{name}").read_bytes())
    (folder / "train.tokens").write_bytes(tokens.tobytes())
    return changed


def test_the_loss_depends_on_predicted_tokens_only(chats, tmp_path):
    """The last token of a conversation is no input of another prediction."""
    config = model_config(vocab_size=259, vocab_multiple=64)
    params, mesh = host_params(config), mesh_of()
    segments, mask = chats.segments("train")[:8], chats.loss_mask("train")[:8]
    last = np.argwhere((segments > 0) & (segments != np.roll(segments, -1, 1)))
    predicted = [tuple(place) for place in last if mask[tuple(place)]]
    unpredicted = [tuple(place) for place in last if not mask[tuple(place)]]
    assert predicted and unpredicted
    loss, gradients = loss_and_gradients(config, mesh, params, batch_of(chats), inside=True)
    found = {}
    for name, place in (("unpredicted", unpredicted[0]), ("predicted", predicted[0])):
        folder = tmp_path / name
        folder.mkdir()
        changed = batch_of(with_token(chats, folder, place, 7))
        assert not np.array_equal(changed.tokens, batch_of(chats).tokens)
        found[name] = loss_and_gradients(config, mesh, params, changed, inside=True)
    assert found["unpredicted"][0] == loss and found["predicted"][0] != loss
    same = jax.tree.map(np.array_equal, found["unpredicted"][1], gradients)
    assert all(jax.tree.leaves(same))
    same = jax.tree.map(np.array_equal, found["predicted"][1], gradients)
    assert not any(jax.tree.leaves(same))
    _check_reference(config, params, batch_of(chats), loss, gradients)


def _check_reference(config, params, batch, loss, gradients):
    """Loss, and the gradient along a random direction, in float64 with a mask of its own."""
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    random = np.random.default_rng(5)
    direction = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape), exact)

    def reference(step: float) -> float:
        moved = jax.tree.map(lambda leaf, along: leaf + step * along, exact, direction)
        found = logits(moved, config.model, batch.tokens, batch.segments)
        return losses(found, batch.targets, config.train.z_loss)[0] / (batch.targets >= 0).sum()

    assert loss == pytest.approx(reference(0), rel=1e-5)
    slope = (reference(1e-5) - reference(-1e-5)) / 2e-5
    products = jax.tree.map(
        lambda g, d: float((g.astype(np.float64) * d).sum()), gradients, direction
    )
    assert sum(jax.tree.leaves(products)) == pytest.approx(slope, rel=1e-4)


def test_a_run_on_conversations(chats, config, tmp_path):
    data = dataclasses.replace(DATA, store=str(chats.folder))
    config = dataclasses.replace(
        config, data=data, mesh=MeshConfig(), train=dataclasses.replace(config.train, steps=2)
    )
    result = train(config, tmp_path / "run")
    assert (tmp_path / "run/tokenizer" / TEMPLATE_FILE).read_text() == NAMED_TEMPLATES["plain"]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    steps = [line for line in lines if "event" not in line]
    sequences = Sequences(chats, data, "train")
    predicted = (sequences.read(range(len(sequences))).targets_BT >= 0).sum()
    assert 0 < steps[0]["tokens"] <= predicted == chats.manifest.predicted["train"]
    # Speed counts all tokens that the model computes.
    seconds, rate = steps[-1]["step_seconds"], steps[-1]["tokens_per_second"]
    assert rate * seconds == pytest.approx(8 * LENGTH, rel=1e-3)
    assert chats.manifest.splits["validation"].rows <= 2 * config.train.batch_size
    assert result.evaluation["tokens"] == chats.manifest.predicted["validation"]
