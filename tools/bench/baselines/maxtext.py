"""The reference workload in MaxText 0.2.5, through its public functions.

    python tools/bench/baselines/maxtext.py [--mesh DATA MODEL] [--kv-heads K]

Uses MaxText's config, state, synthetic data and jitted train step. MaxText has no parallel block; a
serial block with the same number of weights replaces it. With one key/value head MaxText rejects
MODEL > 1.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

HERE = str(Path(__file__).resolve().parent)
sys.path.insert(0, HERE)
from protocol import serve_turns  # noqa: E402

# This file has the name of the package that it imports, so its folder must not be on the path.
sys.path[:] = [entry for entry in sys.path if entry != HERE]

BATCH = 4
MODEL = {
    "decoder_block": "llama2",
    "base_emb_dim": 512,
    "base_num_decoder_layers": 8,
    "base_num_query_heads": 8,
    "head_dim": 64,
    "base_mlp_dim": 2048,
    "vocab_size": 32_768,
    "max_target_length": 512,
    "logits_via_embedding": True,
    "attention": "dot_product",
    "dtype": "float32",
    "weight_dtype": "float32",
}
OPTIMIZER = {
    "opt_type": "adamw",
    "learning_rate": 1e-4,
    "warmup_steps_fraction": 0.0,
    "adam_b1": 0.9,
    "adam_b2": 0.95,
    "adam_weight_decay": 0.1,
    "gradient_clipping_threshold": 1.0,
}
# The fastest settings in short trials: unrolled layers, all matmul results saved (no policy saves
# everything; `none` reruns whole blocks), fused projections.
# The fused query/key/value projection lacks the scores' 1/sqrt(64), which MaxText folds into the
# initial weights of a separate query projection: equal work, but it learns more slowly.
FASTEST = {"scan_layers": False, "remat_policy": "minimal", "fused_mlp": True, "fused_qkv": True}
ENVIRONMENT = {
    "run_name": "reference",
    "base_output_directory": "",
    "hardware": "cpu",
    "skip_jax_distributed_system": True,
    "dataset_type": "synthetic",
    "packing": False,
    "enable_dropout": False,
    "enable_checkpointing": False,
    "enable_tensorboard": False,
    "log_config": False,
    "jax_cache_dir": "",  # no cache: the first step compiles
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mesh", type=int, nargs=2, default=(1, 1), metavar=("DATA", "MODEL"))
    parser.add_argument("--kv-heads", type=int, default=1)
    flags = parser.parse_args()
    # Standard output carries the protocol: everything that MaxText prints goes to standard error.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    step, parameters = prepare(*flags.mesh, flags.kv_heads)
    with redirect_stdout(pipe):
        serve_turns(step, parameters)


def prepare(data: int, model: int, kv_heads: int) -> tuple[Callable[[], float], int]:
    """(step, number of weights), prepared as in MaxText's `train_loop`."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", data * model)
    from flax import nnx
    from flax.core.spmd import logical_axis_rules
    from maxtext.trainers.pre_train import train
    from maxtext.utils import sharding, train_utils
    from maxtext.utils.globals import MAXTEXT_CONFIGS_DIR

    placement = {
        "base_num_kv_heads": kv_heads,
        "per_device_batch_size": BATCH / (data * model),
        "ici_fsdp_parallelism": data,  # weights are sharded over it, as over paxlike's data axis
        "ici_tensor_parallelism": model,
    }
    settings = MODEL | OPTIMIZER | FASTEST | ENVIRONMENT | placement
    base = os.path.join(MAXTEXT_CONFIGS_DIR, "base.yml")
    config, recorder = train.initialize(
        ["", base, *(f"{name}={value}" for name, value in settings.items())]
    )
    _, _, shardings, net, mesh, _, _, loader, _, _, whole = train_utils.setup_train_loop(
        config, recorder
    )
    graph, state = nnx.split(whole)
    weights, shardings = sharding.maybe_update_params_sharding_with_opt(config, shardings)
    train_step, _ = train_utils.jit_train_and_eval_step(
        config, graph, mesh, state, shardings, train.train_step, params_shardings=weights
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
    del net, whole

    def step() -> float:
        nonlocal state
        with (
            redirect_stdout(sys.stderr),
            jax.set_mesh(mesh),
            logical_axis_rules(config.logical_axis_rules),
        ):
            state, metrics = train_step(state, loader.load_next_batch())
            jax.block_until_ready(state)
        return float(metrics["scalar"]["learning/loss"])

    return step, parameters


if __name__ == "__main__":
    main()
