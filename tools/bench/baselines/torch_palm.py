"""A plain PaLM decoder in PyTorch, as a PyTorch user would write it.

Usage: `python torch_palm.py [compile] [bfloat16]`.
"""

import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, os.path.dirname(__file__))
from protocol import serve_turns  # noqa: E402

LAYERS, D_MODEL, HEADS, HEAD_DIM, D_FF = 8, 512, 8, 64, 2048
VOCABULARY, LENGTH, BATCH = 32768, 512, 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D_MODEL, bias=False)
        # The parallel block allows one matmul for queries, the key/value head and SwiGLU.
        self.parts = [HEADS * HEAD_DIM, HEAD_DIM, HEAD_DIM, D_FF, D_FF]
        self.into = nn.Linear(D_MODEL, sum(self.parts), bias=False)
        self.out = nn.Linear(HEADS * HEAD_DIM + D_FF, D_MODEL, bias=False)

    def forward(self, x, cos, sin):
        B, T, _ = x.shape
        q, k, v, gate, up = self.into(self.norm(x)).split(self.parts, -1)
        q = rotate(q.view(B, T, HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        k = rotate(k.view(B, T, 1, HEAD_DIM).transpose(1, 2), cos, sin)
        v = v.view(B, T, 1, HEAD_DIM).transpose(1, 2)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        o = o.transpose(1, 2).reshape(B, T, HEADS * HEAD_DIM)
        return x + self.out(torch.cat([o, F.silu(gate) * up], -1))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, D_MODEL)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(D_MODEL, bias=False)
        angles = torch.arange(LENGTH)[:, None] * 10000 ** -(torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = self.norm(x) @ self.embedding.weight.T * D_MODEL**-0.5
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main() -> None:
    torch.manual_seed(0)
    model = Decoder()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    loss_of = torch.compile(model) if "compile" in sys.argv[1:] else model

    def step() -> float:
        rows = torch.randint(VOCABULARY, (BATCH, LENGTH + 1))
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in sys.argv[1:]):
            loss = loss_of(rows[:, :-1], rows[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    serve_turns(step, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
