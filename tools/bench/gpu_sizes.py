"""The models that `tools/bench/gpu.py` runs and their fixed settings. Imports no JAX."""

import dataclasses
from pathlib import Path

from paxlike.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    PrecisionConfig,
    TrainConfig,
    load,
)

PALM_8B = Path(__file__).resolve().parents[2] / "configs" / "palm_8b.py"
VOCABULARY = 32_768


@dataclasses.dataclass(frozen=True)
class Size:
    model: ModelConfig
    length: int
    batches: tuple[int, ...]
    """Sequences per step: the first that fits is used."""
    params: str = "float32"
    """Dtype of stored parameters and of gradients. Moments are always float32."""
    optimizer: str = "adamw"
    goal: float | None = None
    """MFU by the palm convention."""
    why: str = ""
    """A note for the table."""

    def config(self, batch: int, **model: object) -> Config:
        """The training config for steps of `batch` sequences.

        model: fields of ModelConfig to change.
        """
        return Config(
            model=dataclasses.replace(self.model, **model),
            data=DataConfig(sequence_length=self.length),
            optim=OptimConfig(
                name=self.optimizer, learning_rate=1e-4, schedule="constant", warmup_steps=1
            ),
            train=TrainConfig(steps=1000, batch_size=batch),
            mesh=MeshConfig(data=1),
            precision=PrecisionConfig(params=self.params, gradients=self.params),
        )


def _palm(layers: int, d_model: int, heads: int, head_dim: int) -> ModelConfig:
    """PaLM's parallel block: SwiGLU with d_ff = 4 d_model, one key/value head, tied embedding."""
    return ModelConfig(
        layers=layers,
        d_model=d_model,
        heads=heads,
        kv_heads=1,
        head_dim=head_dim,
        d_ff=4 * d_model,
        vocab_size=VOCABULARY,
        remat="attention",
    )


_1B = _palm(16, 2048, 16, 128)
_8B = dataclasses.replace(load(PALM_8B).model, remat="attention")
_SMOKE = ModelConfig(
    layers=2, d_model=64, heads=4, kv_heads=1, head_dim=16, d_ff=256, vocab_size=512
)
WHY_8B = (
    "parameters in bfloat16 and a factored second moment, because float32 parameters, gradients "
    "and two moments take 129 GiB before the first activation. The PyTorch baseline has AdamW "
    "with bfloat16 moments"
)
SIZES = {
    "125m": Size(_palm(12, 768, 12, 64), 2048, (64, 32, 16), goal=0.40),
    "1b": Size(_1B, 2048, (32, 16, 8), goal=0.52),
    "1b-8192": Size(_1B, 8192, (8, 4, 2)),
    "3b": Size(_palm(22, 3072, 24, 128), 2048, (12, 8, 4), goal=0.58),
    "8b": Size(_8B, 2048, (12, 8, 4), "bfloat16", "adafactor", 0.58, WHY_8B),
    "test": Size(_SMOKE, 64, (2,), why="a smoke test for any machine"),
}
"""Four models with goals, with bfloat16 matmuls, and with float32 parameters where they fit.

remat "attention" recomputes no matmul: matmul results are saved; norms, SiLU and the product with
the gate are recomputed from them inside the fusions that need them. With "none" XLA saves those
too: the compiled 1B program (16 × 2048) then moves 626 GiB per step instead of 434, and takes
84 GiB instead of 40."""

REAL = tuple(name for name in SIZES if name != "test")

OPTIONS = {
    "xla_gpu_enable_triton_gemm": (
        False,
        "cuBLAS for every matmul: no tuning of Triton matmuls, and none of their fusions",
    ),
    "xla_gpu_triton_gemm_any": (
        True,
        "Triton for every matmul it supports: fuses the surrounding operations",
    ),
    "xla_gpu_enable_command_buffer": (
        "",
        "no CUDA graphs: they save kernel launches, which matters for small steps only, and "
        "cost memory",
    ),
    "xla_gpu_enable_latency_hiding_scheduler": (
        True,
        "moves independent work between instructions; meant for collectives",
    ),
}
"""XLA options to try one at a time -> (value, possible gain).

Training sets none of them: that takes a measurement, which does not exist yet."""
