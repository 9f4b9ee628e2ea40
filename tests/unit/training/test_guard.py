"""Loss spikes and NaN: when they are detected and which batches are skipped.

A rewound run equals a run that never had those batches.
"""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import flat, numerics_of

from paxlike.adapt.parts import split
from paxlike.config import AdaptConfig, GuardConfig, UserError
from paxlike.parallel.mesh import make_mesh
from paxlike.training import loop
from paxlike.training.guard import Guard, SkippedBatches, Spike
from paxlike.training.loop import train
from paxlike.training.state import initial_params

pytestmark = pytest.mark.slow

GUARD = GuardConfig(rewinds=2, back=3, skip=2, window=10, patience=2)


def first_spike(config: GuardConfig, losses) -> Spike | None:
    guard = Guard(config)
    for step, loss in enumerate(losses, 1):
        try:
            guard.check(step, loss, 1.0)
        except Spike as spike:
            return spike
    return None


def falling(count: int) -> list[float]:
    random = np.random.default_rng(0)
    return list(8.0 - np.arange(count) * 0.02 + random.normal(0, 0.05, count))


def test_a_spike_is_detected_after_patience_and_reported_at_its_onset():
    spike = first_spike(GUARD, [*falling(30), 9.5, 10.0])
    assert (spike.update, spike.detected) == (30, 31)
    assert "the loss is 10.0000 after a median of" in spike.reason


@pytest.mark.parametrize(
    "losses",
    [
        falling(200),
        [*falling(30), 9.5, 7.4, 9.5, 7.4],
        [8.0] * 30 + [8.05] * 5,
        [*falling(5), 20.0, 20.0, 20.0],
    ],
    ids=[
        "noise",
        "one high loss at a time",
        "a small rise after a plateau",
        "before the window is full",
    ],
)
def test_losses_without_a_spike(losses):
    assert first_spike(GUARD, losses) is None


def test_a_non_finite_loss_is_detected_immediately_or_tolerated_for_some_steps():
    assert first_spike(GuardConfig(), [5.0, math.nan]).update == 1
    tolerant = GuardConfig(skip_nonfinite=True, patience=2)
    assert first_spike(tolerant, [5.0, math.nan, 5.0, math.nan]) is None
    assert first_spike(tolerant, [5.0, math.nan, math.inf]).update == 1


def test_without_rewinds_a_finite_spike_is_ignored():
    assert first_spike(GuardConfig(window=10), [*falling(30), 50.0, 50.0, 50.0]) is None


def test_high_losses_do_not_enter_the_median():
    config = GuardConfig(rewinds=1, window=10, patience=8)
    assert first_spike(config, [*falling(30), *[12.0] * 8]).update == 30


@pytest.mark.parametrize(
    "rows", [[], [(3, 2)], [(3, 2), (3, 2)], [(3, 4), (5, 6)], [(10, 1), (0, 3)], [(2, 3), (5, 1)]]
)
def test_skipped_batches_are_omitted_and_all_others_are_read_in_order(tmp_path, rows):
    skipped = SkippedBatches(tmp_path)
    for first, count in rows:
        skipped.add(first, count, "test")
    out = {batch for first, count in rows for batch in range(first, first + count)}
    expected = [batch for batch in range(60) if batch not in out]
    assert [skipped.batch(update) for update in range(40)] == expected[:40]
    assert [SkippedBatches(tmp_path).batch(update) for update in range(40)] == expected[:40]


@pytest.mark.parametrize(
    "text", ["[{}]", "nonsense", '[{"first_batch": -1, "batches": 2, "reason": ""}]', "[1]"]
)
def test_a_corrupted_record_is_rejected(tmp_path, text):
    (tmp_path / "skipped.json").write_text(text)
    with pytest.raises(UserError, match="skipped.json cannot be read"):
        SkippedBatches(tmp_path)


# ---- in a run ------------------------------------------------------------------------------------


@pytest.fixture
def guarded(config, change):
    config = change(change(config, "train.steps", 8), "checkpoint.keep", 3)
    for name, value in (("back", 1), ("skip", 2), ("window", 3), ("patience", 1), ("rewinds", 2)):
        config = change(config, f"guard.{name}", value)
    return config


def poison(monkeypatch, batches):
    """Makes the loss and the gradient NaN on the given batches."""
    real = loop._Loop.compile

    def compiled(self, state, batch):
        step = real(self, state, batch)

        def poisoned(state, batch):
            with jax.transfer_guard("allow"):
                if self.skipped.batch(int(state.step)) in batches:
                    state = state._replace(params=jax.tree.map(lambda x: x + jnp.nan, state.params))
                return step(state, batch)

        return poisoned

    monkeypatch.setattr(loop._Loop, "compile", compiled)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "event" not in line}


def test_a_rewound_run_equals_a_run_that_never_had_the_batches(
    guarded, change, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        poison(patch, {5, 9})
        train(guarded, tmp_path / "spiked")
    assert "Rewound to step 4" in capsys.readouterr().out
    rows = json.loads((tmp_path / "spiked" / "skipped.json").read_text())
    assert [(row["first_batch"], row["batches"]) for row in rows] == [(4, 2), (8, 2)]
    train(change(guarded, "train.steps", 2), tmp_path / "clean")
    (tmp_path / "clean" / "skipped.json").write_text(json.dumps(rows))
    train(guarded, tmp_path / "clean")
    assert losses(tmp_path / "spiked") == losses(tmp_path / "clean")
    # Resumed runs keep skipping these batches.
    longer = change(guarded, "train.steps", 9)
    train(longer, tmp_path / "spiked")
    train(longer, tmp_path / "clean")
    assert losses(tmp_path / "spiked") == losses(tmp_path / "clean")


def test_a_rewound_adapter_run_keeps_its_base(guarded, tmp_path, monkeypatch, capsys):
    config = dataclasses.replace(guarded, adapt=AdaptConfig("lora", rank=2))
    poison(monkeypatch, {5})
    state = train(config, tmp_path / "run").state
    assert capsys.readouterr().out.count("Rewound to step") == 1
    assert all(np.isfinite(leaf).all() for leaf in flat(state.params).values())
    with jax.set_mesh(make_mesh(config.mesh)):
        base = initial_params(config, numerics_of(config))
        frozen = flat(split(config.model, config.adapt, base).frozen)
    for name, leaf in flat(state.frozen).items():
        np.testing.assert_array_equal(leaf, frozen[name], err_msg=name)


def test_the_run_fails_after_the_maximum_number_of_rewinds(guarded, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(3, 100)))
    with pytest.raises(UserError, match=r"after 2 rewinds \(guard.rewinds\)"):
        train(guarded, tmp_path / "run")


def test_a_restart_deletes_checkpoints_that_do_not_match_the_skipped_batches(
    guarded, change, tmp_path, capsys
):
    """As if the process had ended after it recorded the batches and before it deleted them."""
    train(change(guarded, "train.steps", 6), tmp_path / "run")
    SkippedBatches(tmp_path / "run").add(3, 2, "test")
    train(guarded, tmp_path / "run")
    assert "resuming from step 2" in capsys.readouterr().out
    train(change(guarded, "train.steps", 2), tmp_path / "clean")
    SkippedBatches(tmp_path / "clean").add(3, 2, "test")
    train(guarded, tmp_path / "clean")
    assert losses(tmp_path / "run") == losses(tmp_path / "clean")


def test_a_non_finite_update_is_not_applied(config, change, tmp_path):
    """Gradients overflow in the first steps. The parameters stay unchanged, and the run ends after
    guard.patience steps."""
    config = change(change(config, "guard.skip_nonfinite", True), "guard.patience", 3)
    config = change(change(config, "optim.learning_rate", 1e30), "optim.clip", 0.0)
    with pytest.raises(UserError, match="the loss is"):
        train(config, tmp_path / "run")
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    skipped = [line["skipped"] for line in lines if "skipped" in line]
    assert skipped[0] == 0.0 and skipped[-3:] == [1.0] * 3


def test_checkpoints_must_reach_back_far_enough(config, change):
    with pytest.raises(
        UserError, match="reach back 2 steps; to rewind by guard.back 100 .* must reach 103"
    ):
        change(config, "guard.rewinds", 1)
