"""One large float32 product, what a machine gives at best: `python product.py xla|torch`. A step is one product of 4096 x 4096."""

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
from contest import contend  # noqa: E402

SIZE = 4096


def main() -> None:
    if sys.argv[1] == "torch":
        import torch

        a = torch.ones(SIZE, SIZE)
        contend(lambda: (a @ a)[0, 0].item(), 0)
    else:
        import jax

        a = jax.numpy.ones((SIZE, SIZE))
        product = jax.jit(lambda a: a @ a)
        contend(lambda: float(product(a).block_until_ready()[0, 0]), 0)


if __name__ == "__main__":
    main()
