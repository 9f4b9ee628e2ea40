"""A small PaLM on the source of Python's standard library, in minutes on two CPU cores.

paxlike train configs/tiny.py
"""

from paxlike.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="tiny",
        model=ModelConfig(layers=4, d_model=256, heads=4, kv_heads=1, head_dim=64, d_ff=1024, vocab_size=4096),
        data=DataConfig(sequence_length=256, tokenizer="sentencepiece", tokenizer_vocab=4096),
        optim=OptimConfig(
            name="adamw", learning_rate=3e-3, schedule="cosine", warmup_steps=50, beta2=0.95, weight_decay=0.1
        ),
        train=TrainConfig(steps=300, batch_size=16),
        checkpoint=CheckpointConfig(every=100),
        eval=EvalConfig(every=100),
        log=LogConfig(every=10),
    )
