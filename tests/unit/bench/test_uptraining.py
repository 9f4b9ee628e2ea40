"""The published table is that of the recorded runs, and pooling is best in them."""

from pathlib import Path

import numpy as np
import pytest

from tools.bench.uptraining import SEEDS, VARIANTS, converted_config, results, table

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "starting.md"


def test_the_guide_has_the_recorded_table():
    found = sorted((r["seed"], r["kv_heads"], r["how"]) for r in results())
    assert found == sorted((seed, *variant) for seed in SEEDS for variant in VARIANTS)
    assert table(results()) in GUIDE.read_text()


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_pooled_heads_are_best_after_training(kv_heads):
    rows = [r for r in results() if r["kv_heads"] == kv_heads]
    loss = {how: np.mean([r["losses"][1] for r in rows if r["how"] == how])
            for how in ("mean", "first", "random")}  # fmt: skip
    assert loss["mean"] < loss["first"] < loss["random"]


def test_a_conversion_without_updates_keeps_its_parameters():
    config = converted_config(Path("base"), 0, 1, "first", updates=False)
    assert config.model.kv_heads == 1 and config.init.kv_heads == "first"
    assert config.train.steps == 1 and config.optim.learning_rate < 1e-20
