"""GPT-3 125M (arXiv 2005.14165, table 2.1), whose architecture is GPT-2's.

    paxlike data prepare --input 'texts/*.jsonl.zst' --output data/gpt3 --tokenizer gpt2
    paxlike train configs/gpt3_125m.py --run-dir runs/gpt3-125m

`--tokenizer gpt2` is a Hugging Face folder with GPT-2's tokenizer. From the paper: sizes, batch,
learning rate, 300 B tokens, cosine decay to 10 %, Adam (0.9, 0.95), weight decay 0.1, clipping at
1.0, 375 M tokens of warmup. Not from the paper: all layers are dense (the paper alternates dense
and locally banded sparse layers), and the batch does not grow at the start. 125,226,240 parameters.
"""

from paxlike.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)


def config() -> Config:
    return Config(
        name="gpt3-125m",
        model=ModelConfig(
            layers=12,
            d_model=768,
            heads=12,
            kv_heads=12,
            head_dim=64,
            d_ff=3072,
            vocab_size=50_257,
            block="serial",
            norm_bias=True,
            norm_epsilon=1e-5,
            feed_forward="gelu",
            feed_forward_bias=True,
            attention_bias="qkvo",
            learned_positions=2048,
            logit_scale=1.0,
        ),
        data=DataConfig(store="data/gpt3", sequence_length=2048),
        optim=OptimConfig(
            name="adamw",
            learning_rate=6e-4,
            schedule="cosine",
            warmup_steps=732,
            final_fraction=0.1,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
        ),
        train=TrainConfig(steps=572_205, batch_size=256, z_loss=0.0),
        mesh=MeshConfig(data=-1, model=1),
        checkpoint=CheckpointConfig(every=2000),
        eval=EvalConfig(every=2000, batches=16),
    )
