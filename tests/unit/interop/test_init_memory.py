"""The host holds about a layer of a model while its parameters are read onto the devices."""

import tracemalloc

import jax
import numpy as np
import pytest
from helpers import flat, mesh_of, numerics_of
from hf_folders import write_sparse_folder
from interop_cases import LLAMA, case

from paxlike.accounting.parameters import weights
from paxlike.config import InitConfig
from paxlike.interop.init_sources import open_source
from paxlike.optim.optimizer import make_optimizer
from paxlike.training import init_params
from paxlike.training.init_plan import Origin, make_plan
from paxlike.training.state import abstract_params, abstract_state

# Llama 2 7B, with every dimension divided by 16: the embedding is 0.6 of a layer, as there.
SEVEN_B = {
    **LLAMA, "layers": 32, "d_model": 256, "heads": 32, "kv_heads": 32, "head_dim": 8, "d_ff": 688,
    "vocab_size": 2000, "vocab_multiple": 16,
}  # fmt: skip


@pytest.mark.slow
def test_the_host_holds_about_a_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(init_params, "AT_ONCE", init_params.AT_ONCE // 16**2)
    config = case(**SEVEN_B)
    source = open_source(str(write_sparse_folder(tmp_path / "hf", config, "float32", 4)), config)
    program = numerics_of(config), make_optimizer(config.optim, 10)
    with jax.set_mesh(mesh_of()):
        like = flat(abstract_state(config, *program).params)
        origins = make_plan(config.model, list(like), InitConfig(), source).origins
        peak = 0
        for name, leaf in like.items():
            tracemalloc.start()  # NumPy reports its arrays
            jax.block_until_ready(init_params.load(name, origins[name], leaf))
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    layer = 4 * sum(w.count // w.copies for w in weights(config.model) if w.copies > 1)
    print(f"{peak:,} bytes at the peak; a layer has {layer:,}")
    assert peak < 1.5 * layer


def test_each_part_is_read_once_and_alone():
    read = []

    class Recorded:
        shape = (16, 24)

        def __getitem__(self, index):
            read.append(tuple(one.stop - one.start for one in index))
            return np.zeros(read[-1])

    config = case(d_model=16, d_ff=24)
    with jax.set_mesh(mesh_of(2, 2, 2)):
        leaf = flat(abstract_params(config, numerics_of(config)))["blocks/wup_DF"]
        init_params.load("blocks/wup_DF", Origin("copied", lambda layer: Recorded()), leaf)
    assert read == [(8, 12)] * 4 * config.model.layers  # 4 parts, each on both pods
