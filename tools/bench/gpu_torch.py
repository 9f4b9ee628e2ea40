"""The PyTorch baseline for one size of `tools/bench/gpu.py`: same decoder, batch and optimizer.

    python -m tools.bench.gpu_torch NAME BATCH

Written for speed: torch.compile over the whole model and its loss, scaled-dot-product attention
with the flash kernel, autocast to bfloat16 over float32 parameters (bfloat16 parameters if the size
says so), one fused matmul into a block and one out of it, fused AdamW, clipping. Needs no JAX.
Prints one line of JSON. Exit code 3: out of memory.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time

BEGIN = time.time()

import torch  # noqa: E402 - the time to the first step includes imports
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from paxlike.config import Config, ModelConfig  # noqa: E402
from tools.bench.gpu_sizes import SIZES  # noqa: E402

WARMUP, ROUNDS, STEPS, OUT_OF_MEMORY = 3, 5, 5, 3


def rotate(x_BNTH: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on halves (arXiv 2104.09864). cos, sin: [T, H/2]."""
    a, b = x_BNTH.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x_BNTH.dtype)


class Block(nn.Module):
    """PaLM's parallel block, x + attention(norm(x)) + feed_forward(norm(x)).

    arXiv 2204.02311, section 2.
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.c = c
        queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
        self.parts = (queries, keys, keys, c.d_ff, c.d_ff)
        self.scale = nn.Parameter(torch.ones(c.d_model))
        self.into = nn.Linear(c.d_model, sum(self.parts), bias=False)
        self.out = nn.Linear(queries + c.d_ff, c.d_model, bias=False)
        nn.init.normal_(self.into.weight, std=c.d_model**-0.5)
        nn.init.normal_(self.out.weight, std=(queries + c.d_ff) ** -0.5)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        c, (B, T, _) = self.c, x.shape
        y = F.layer_norm(x, (c.d_model,), self.scale.to(x.dtype), eps=c.norm_epsilon)
        q, k, v, gate, up = self.into(y).split(self.parts, -1)
        q, k, v = (p.reshape(B, T, -1, c.head_dim).transpose(1, 2) for p in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.kv_heads < c.heads)
        return x + self.out(torch.cat((o.transpose(1, 2).reshape(B, T, -1), F.silu(gate) * up), -1))


class Decoder(nn.Module):
    """Returns the loss: mean cross-entropy plus z-loss.

    Tied logits are scaled by 1/sqrt(d_model) (section 5).
    """

    def __init__(self, config: Config):
        super().__init__()
        c = self.c = config.model
        self.z_loss = config.train.z_loss
        self.embedding = nn.Parameter(torch.randn(c.vocab_rows, c.d_model))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.scale = nn.Parameter(torch.ones(c.d_model))
        half = torch.arange(0, c.head_dim, 2) / c.head_dim
        angles = torch.outer(torch.arange(config.data.sequence_length), c.rope_theta**-half)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        c = self.c
        x = F.embedding(tokens, self.embedding).to(torch.bfloat16)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = F.layer_norm(x, (c.d_model,), self.scale.to(x.dtype), eps=c.norm_epsilon)
        logits = (F.linear(x, self.embedding.to(x.dtype)) * c.d_model**-0.5).float().flatten(0, 1)
        log_z = torch.logsumexp(logits, -1)
        return F.cross_entropy(logits, targets.flatten()) + self.z_loss * (log_z**2).mean()


def measure_step(config: Config, device: str) -> dict:
    """Speed, peak memory and time to the first step."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    dtype = getattr(torch, config.precision.params)
    model = Decoder(config).to(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.optim.learning_rate,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.epsilon,
        weight_decay=0.0,
        fused=device == "cuda",
    )
    compiled = torch.compile(model, dynamic=False)
    shape = (config.train.batch_size, config.data.sequence_length + 1)
    stream = torch.randint(config.model.vocab_size, shape, device=device)
    tokens, targets = stream[:, :-1].contiguous(), stream[:, 1:].contiguous()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16), flash(device):
            loss = compiled(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    loss = step()
    wait()
    first = time.time() - BEGIN
    for _ in range(WARMUP):
        step()
    rounds = []
    for _ in range(ROUNDS):
        wait()
        begin = time.perf_counter()
        for _ in range(STEPS):
            loss = step()
        wait()
        rounds.append((time.perf_counter() - begin) / STEPS)
    tokens_per_second = tokens.numel() / statistics.median(rounds)
    return {
        "torch": torch.__version__,
        "batch": shape[0],
        "length": shape[1] - 1,
        "seconds": rounds,
        "tokens_per_second": tokens_per_second,
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "first_step": first,
        "loss": loss.item(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def flash(device: str) -> contextlib.AbstractContextManager:
    """On a GPU, allows only flash attention: PyTorch raises instead of using a slower kernel."""
    if device != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("batch", type=int)
    flags = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        result = measure_step(SIZES[flags.size].config(flags.batch), device)
    except torch.OutOfMemoryError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        sys.exit(OUT_OF_MEMORY)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
