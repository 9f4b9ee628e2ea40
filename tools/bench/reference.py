"""The reference workload of all benchmarks: a PaLM block of d_model 512, 8 layers, AdamW.

Its batch is 4 × 512 tokens.
"""

import dataclasses

import jax

from paxlike.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    TrainConfig,
)
from paxlike.nn.numerics import Numerics
from paxlike.parallel.mesh import make_mesh

MODEL = ModelConfig(
    layers=8, d_model=512, heads=8, kv_heads=1, head_dim=64, d_ff=2048, vocab_size=32_768
)
SMALL = ModelConfig(
    layers=2, d_model=64, heads=4, kv_heads=1, head_dim=16, d_ff=128, vocab_size=512
)


def config(size: str, **model: object) -> Config:
    """The workload's config.

    size: "full", or "test" for one that runs in seconds. model: fields of ModelConfig to change.
    """
    shape, tokens = (MODEL, 512) if size == "full" else (SMALL, 64)
    return Config(
        model=dataclasses.replace(shape, **model),
        data=DataConfig(sequence_length=tokens, tokenizer_vocab=4096 if size == "full" else 384),
        optim=OptimConfig(
            name="adamw", learning_rate=1e-4, schedule="constant", warmup_steps=1, weight_decay=0.1
        ),
        train=TrainConfig(steps=1000, batch_size=4),
        precision=PrecisionConfig(compute="float32"),
    )


def numerics(of: Config) -> Numerics:
    return Numerics.of(of.model, of.precision, jax.default_backend())


def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])
