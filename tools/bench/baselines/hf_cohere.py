"""The reference workload in Hugging Face's `CohereForCausalLM`, which has the same architecture.

Usage: `python hf_cohere.py`.
"""

import os
import sys

import torch
import transformers

sys.path.insert(0, os.path.dirname(__file__))
from protocol import serve_turns  # noqa: E402


def main() -> None:
    torch.manual_seed(0)
    config = transformers.CohereConfig(
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=64,
        intermediate_size=2048,
        vocab_size=32768,
        logit_scale=512**-0.5,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = transformers.CohereForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step() -> float:
        rows = torch.randint(32768, (4, 513))
        loss = model(
            input_ids=rows[:, :-1],
            labels=rows[:, 1:].contiguous(),
            shift_labels=rows[:, 1:].contiguous(),
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    serve_turns(step, sum(p.numel() for p in model.parameters()))


if __name__ == "__main__":
    main()
