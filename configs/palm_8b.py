"""PaLM 8B (arXiv 2204.02311, tables 1 and 2; recipe: section 5): 8,632,012,800 parameters.

    paxlike data prepare --input 'texts/*.jsonl.zst' --output data/palm \\
        --tokenizer sentencepiece --tokenizer-vocab 256000
    paxlike train configs/palm_8b.py --run-dir runs/palm-8b

From the paper: the two batch sizes and, through 4.29e22 training FLOPs, 780 B tokens. The step at
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
        name="palm-8b",
        model=ModelConfig(
            layers=32,
            d_model=4096,
            heads=16,
            kv_heads=1,
            head_dim=256,
            d_ff=16_384,
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
        train=TrainConfig(steps=768_881, batch_size=512, batch_ramp=((256, 50_000),), z_loss=1e-4),
        mesh=MeshConfig(pod=1, data=-1, model=4),
        checkpoint=CheckpointConfig(every=500, keep=5, keep_every=25_000),
        guard=GuardConfig(rewinds=20),
        eval=EvalConfig(every=5_000, batches=16),
    )
