"""The reference workload in paxlike: the parts of `paxlike train`, with its data pipeline.

python -m tools.bench.baselines.paxlike_step [--mesh DATA MODEL] [--compute DTYPE] [--kv-heads K]
"""

import argparse
import dataclasses

from paxlike.parallel import runtime
from tools.bench.baselines.protocol import serve_turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mesh", type=int, nargs=2, default=(1, 1), metavar=("DATA", "MODEL"))
    parser.add_argument("--compute", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--kv-heads", type=int, default=1)
    flags = parser.parse_args()
    data, model = flags.mesh
    runtime.start(data * model)
    import jax

    from paxlike.config import MeshConfig, PrecisionConfig
    from paxlike.data.source import open_data, train_batches
    from paxlike.nn.numerics import Numerics
    from paxlike.parallel.host_batches import local_rows
    from paxlike.parallel.mesh import make_mesh
    from paxlike.training.state import make_state
    from paxlike.training.step import Program, on_mesh
    from tools.bench import reference

    config = reference.config("full", remat="attention", kv_heads=flags.kv_heads)
    config = dataclasses.replace(config, precision=PrecisionConfig(compute=flags.compute))
    with jax.set_mesh(make_mesh(MeshConfig(data=data, model=model))):
        size = config.train.batch_size
        rows = local_rows(size, 1)
        batches = train_batches(open_data(config.data), config.data, config.train).batches(
            0, lambda _: rows
        )
        program = Program.of(
            config, Numerics.of(config.model, config.precision, jax.default_backend())
        )
        state = make_state(config, program.numerics, program.optimizer)

        def step() -> float:
            nonlocal state
            state, metrics = program.train_step(state, on_mesh(next(batches), rows, size, 1))
            return float(metrics["loss"])

        serve_turns(step, sum(leaf.size for leaf in jax.tree.leaves(state.params)))
        batches.close()


if __name__ == "__main__":
    main()
