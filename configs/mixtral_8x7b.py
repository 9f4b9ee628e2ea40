"""The architecture of Mixtral 8x7B (arXiv 2401.04088, table 1): 46.7 B parameters, 12.9 B active.

    paxlike info configs/mixtral_8x7b.py --devices 64
    paxlike convert from-hf mistralai/Mixtral-8x7B-v0.1 mixtral

Learning rate, batch size and steps are placeholders: the paper does not give any.
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
        name="mixtral-8x7b",
        model=ModelConfig(
            layers=32,
            d_model=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            vocab_size=32_000,
            block="serial_experts",
            norm="rms",
            head="untied",
            rope_theta=1e6,
            norm_epsilon=1e-5,
            remat="full",
            experts=ExpertsConfig(count=8, top_k=2, d_ff=14_336, balance_loss=0.02, z_loss=0.0),
        ),
        data=DataConfig(sequence_length=4096),
        optim=OptimConfig(name="adamw", learning_rate=1e-4, schedule="cosine", warmup_steps=500),
        train=TrainConfig(steps=100_000, batch_size=256),
        mesh=MeshConfig(data=8, model=8),
        precision=PrecisionConfig(params="bfloat16"),
    )
