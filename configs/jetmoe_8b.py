"""The architecture of JetMoE 8B (arXiv 2404.07413, table 1): 8.5 B parameters, 2.3 B active.

    paxlike info configs/jetmoe_8b.py --devices 64

Attention has experts of query and output projections with shared keys and values (docs/experts.md).
Batch, tokens, peak rate, weight decay and clipping are the paper's (section 4): 1.25 T tokens in
batches of 4 M. A cosine takes the place of its schedule, which is constant between a warmup of 10 B
tokens and a decay over the last 250 B, and its mixtures of data are left to `data`.
"""

from paxlike.config import (
    Config,
    DataConfig,
    ExpertsConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="jetmoe-8b",
        model=ModelConfig(
            layers=24,
            d_model=2048,
            heads=16,
            kv_heads=16,
            head_dim=128,
            vocab_size=32_000,
            block="serial_expert_heads",
            norm="rms",
            logit_scale=1.0,
            remat="full",
            experts=ExpertsConfig(
                count=8, top_k=2, d_ff=5632, balance_loss=0.01, z_loss=0.001, output_bias=True
            ),
        ),
        data=DataConfig(sequence_length=4096),
        optim=OptimConfig(
            name="adamw",
            learning_rate=5e-4,
            schedule="cosine",
            warmup_steps=2400,
            weight_decay=0.1,
            clip=1.0,
        ),
        train=TrainConfig(steps=298_000, batch_size=1024),
        mesh=MeshConfig(data=8, model=8),
        precision=PrecisionConfig(params="bfloat16"),
    )
