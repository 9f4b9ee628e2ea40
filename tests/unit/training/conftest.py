"""A run small enough for unit tests: a byte-level store of 40 documents and a two-layer model."""

import dataclasses
import random

import pytest

from paxlike.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from paxlike.data.prepare import PrepareConfig, prepare


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Returns the directory of a store of 40 documents of random words."""
    folder = tmp_path_factory.mktemp("store")
    words = random.Random(0)
    for number in range(40):
        text = " ".join(words.choice(["alpha", "beta", "gamma", "delta", "\n"]) for _ in range(120))
        (folder / f"{number}.txt").write_text(text)
    prepare(
        PrepareConfig(
            (str(folder / "*.txt"),),
            str(folder / "store"),
            tokenizer="bytes",
            validation_fraction=0.2,
        )
    )
    return folder / "store"


@pytest.fixture
def config(store):
    return Config(
        name="unit",
        model=ModelConfig(
            layers=2,
            d_model=32,
            heads=4,
            kv_heads=1,
            head_dim=8,
            d_ff=64,
            vocab_size=320,
            vocab_multiple=64,
        ),
        data=DataConfig(store=str(store), sequence_length=32),
        optim=OptimConfig(name="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=2),
        train=TrainConfig(steps=6, batch_size=8),
        mesh=MeshConfig(data=2, model=4),
        checkpoint=CheckpointConfig(every=2, keep=2),
        eval=EvalConfig(batches=2),
        log=LogConfig(every=1, tensorboard=False),
    )


@pytest.fixture
def change():
    """change(config, "train.steps", 4) returns a copy with one field changed."""

    def changed(config: Config, name: str, value: object) -> Config:
        section, field = name.split(".")
        return dataclasses.replace(
            config, **{section: dataclasses.replace(getattr(config, section), **{field: value})}
        )

    return changed
