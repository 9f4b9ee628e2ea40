"""PaLM 62B (arXiv 2204.02311, tables 1 and 2; recipe: section 5): 62,495,662,080 parameters.

    paxlike data prepare --input 'texts/*.jsonl.zst' --output data/palm \\
        --tokenizer sentencepiece --tokenizer-vocab 256000
    paxlike train configs/palm_62b.py --run-dir runs/palm-62b

From the paper: the two batch sizes and, through 3.08e23 training FLOPs, 780 B tokens. The step at
which the batch size grows is not published; 50,000 is an assumption.
"""

from paxlike.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    GuardConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="palm-62b",
        model=ModelConfig(
            layers=64,
            d_model=8192,
            heads=32,
            kv_heads=1,
            head_dim=256,
            d_ff=32_768,
            vocab_size=256_000,
            vocab_multiple=128,
            remat="attention",
        ),
        data=DataConfig(store="data/palm", sequence_length=2048),
        optim=OptimConfig(
            name="palm",
            learning_rate=1e-2,
            schedule="palm",
            warmup_steps=10_000,
            beta1=0.9,
            clip=1.0,
        ),
        train=TrainConfig(steps=396_940, batch_size=1024, batch_ramp=((512, 50_000),), z_loss=1e-4),
        mesh=MeshConfig(pod=1, data=-1, model=8),
        checkpoint=CheckpointConfig(every=500, keep=5, keep_every=25_000),
        guard=GuardConfig(rewinds=20),
        eval=EvalConfig(every=5_000, batches=16),
    )
