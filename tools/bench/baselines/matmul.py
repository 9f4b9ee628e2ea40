"""One large float32 matmul, the best this machine can do: `python matmul.py xla|torch`.

A step is one matmul of 4096 × 4096 matrices.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
from protocol import serve_turns  # noqa: E402

SIZE = 4096


def main() -> None:
    if sys.argv[1] == "torch":
        import torch

        a = torch.ones(SIZE, SIZE)
        serve_turns(lambda: (a @ a)[0, 0].item(), 0)
    else:
        import jax

        a = jax.numpy.ones((SIZE, SIZE))
        matmul = jax.jit(lambda a: a @ a)
        serve_turns(lambda: float(matmul(a).block_until_ready()[0, 0]), 0)


if __name__ == "__main__":
    main()
