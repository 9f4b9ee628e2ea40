"""PaLM 540B (arXiv 2204.02311, tables 1 and 2; recipe: section 5): 540,356,474,880 parameters.

    paxlike data prepare --input 'texts/*.jsonl.zst' --output data/palm \\
        --tokenizer sentencepiece --tokenizer-vocab 256000
    paxlike train configs/palm_540b.py --run-dir runs/palm-540b

The paper's mesh is two TPU v4 pods with 256-way data x 12-way model parallelism in each. It reached
46.2 % MFU and 57.8 % HFU (table 3). Gradients are reduced in bfloat16, as PaLM sent them between
pods (section 4).
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
    PrecisionConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="palm-540b",
        model=ModelConfig(
            layers=118,
            d_model=18_432,
            heads=48,
            kv_heads=1,
            head_dim=256,
            d_ff=73_728,
            vocab_size=256_000,
            vocab_multiple=1536,
            remat="palm",
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
        train=TrainConfig(
            steps=255_000, batch_size=2048, batch_ramp=((512, 50_000), (1024, 115_000)), z_loss=1e-4
        ),
        mesh=MeshConfig(pod=2, data=-1, model=12),
        precision=PrecisionConfig(gradients="bfloat16"),
        checkpoint=CheckpointConfig(every=500, keep=5, keep_every=25_000),
        guard=GuardConfig(rewinds=20),
        eval=EvalConfig(every=5_000, batches=16),
    )
