"""The architecture of Llama 3 70B (arXiv 2407.21783, table 3), to plan its fine-tuning on 8 GPUs.

    paxlike plan configs/llama_70b.py --topology h100:1x8
    paxlike plan configs/llama_70b.py --topology h100:1x8 --adapt.kind lora --adapt.rank 16

All parameters do not fit on 8 H100s: their optimizer state alone takes 526 GiB. LoRA of all
matrices fits. docs/adapting.md has the figures.
"""

from paxlike.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="llama-70b",
        model=ModelConfig(
            layers=80,
            d_model=8192,
            heads=64,
            kv_heads=8,
            head_dim=128,
            d_ff=28_672,
            vocab_size=128_256,
            block="serial",
            norm="rms",
            feed_forward="swiglu",
            head="untied",
            rope_theta=500_000.0,
            norm_epsilon=1e-5,
            remat="full",
        ),
        data=DataConfig(sequence_length=2048),
        optim=OptimConfig(name="adamw", learning_rate=1e-4, schedule="cosine", warmup_steps=100),
        train=TrainConfig(steps=1000, batch_size=8),
        mesh=MeshConfig(data=1, model=8),
        precision=PrecisionConfig(params="bfloat16"),
    )
