"""BitNet 125M (arXiv 2310.11453, tables 5 and 6), with quantization groups.

    paxlike data prepare --input 'texts/*.jsonl.zst' --output data/bitnet \\
        --tokenizer sentencepiece --tokenizer-vocab 16384
    paxlike train configs/bitnet_125m.py --run-dir runs/bitnet-125m

From the paper: size, peak learning rate, 40,000 updates of 256 K tokens, Adam (0.9, 0.98), 750
warm-up steps, polynomial decay, no gradient clipping. Not from the paper: the vocabulary of 16,384,
sequences of 2,048 tokens, rotary positions and the number of quantization groups.
"""

from paxlike.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="bitnet-125m",
        model=ModelConfig(
            layers=12,
            d_model=768,
            heads=12,
            kv_heads=12,
            head_dim=64,
            d_ff=3072,
            vocab_size=16_384,
            block="serial",
            feed_forward="gelu",
            quant=QuantConfig(weights="bitnet", groups=4),
        ),
        data=DataConfig(store="data/bitnet", sequence_length=2048),
        optim=OptimConfig(
            name="adamw",
            learning_rate=2.4e-3,
            schedule="linear",
            warmup_steps=750,
            final_fraction=0.0,
            beta1=0.9,
            beta2=0.98,
            weight_decay=0.01,
            clip=0.0,
        ),
        train=TrainConfig(steps=40_000, batch_size=128, z_loss=0.0),
        mesh=MeshConfig(data=-1, model=1),
        checkpoint=CheckpointConfig(every=1000),
        eval=EvalConfig(every=1000, batches=16),
    )
