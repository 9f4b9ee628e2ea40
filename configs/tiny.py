"""A small PaLM on the source code of Python's standard library: 1 to 2 minutes on two CPU cores.

    paxlike train configs/tiny.py

The loss falls from 8.9 nats per token (2048 SentencePiece pieces, 2.9 bytes each) to about 4.6, and
to 5.1 on the validation split.
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
        model=ModelConfig(
            layers=4, d_model=192, heads=4, kv_heads=1, head_dim=48, d_ff=768, vocab_size=2048
        ),
        data=DataConfig(sequence_length=256, tokenizer="sentencepiece", tokenizer_vocab=2048),
        optim=OptimConfig(
            name="adamw",
            learning_rate=5e-3,
            schedule="cosine",
            warmup_steps=15,
            beta2=0.95,
            weight_decay=0.1,
        ),
        train=TrainConfig(steps=120, batch_size=8),
        checkpoint=CheckpointConfig(every=100),
        eval=EvalConfig(every=100),
        log=LogConfig(every=20, sample="def main("),
    )
