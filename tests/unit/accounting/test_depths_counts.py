"""Counts of routed blocks: half of the layers at 12.5 % (arXiv 2404.02258)."""

import dataclasses
import json

import pytest

from paxlike.accounting.flops import attention_flops, causal_attention_flops, model_flops, products
from paxlike.accounting.history import read_history
from paxlike.accounting.info import as_dict
from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.parameters import (
    active_parameter_count,
    parameter_count,
    stored_shapes,
    weights,
)
from paxlike.accounting.query_blocks import query_blocks
from paxlike.accounting.report.summary import summarize
from paxlike.accounting.report.table import rows
from paxlike.config import Config, DepthsConfig, ModelConfig, TrainConfig, UserError
from paxlike.parallel.sharding_table import sharding_table

T = 2048
DENSE = ModelConfig(
    layers=8, d_model=512, heads=8, kv_heads=2, head_dim=64, d_ff=2048, vocab_size=4096
)
ROUTED = dataclasses.replace(DENSE, pattern=("parallel", "parallel_routed"))


def linear(model):
    found = products(model, T).values()
    return sum(f for p, f in found if not p.is_attention and p.name != "depth predictor")


def test_parts_of_the_dense_model():
    """Linear FLOPs (1 + 1/8) / 2, attention's products (1 + 1/64) / 2."""
    assert linear(ROUTED) / linear(DENSE) == 0.5625
    attention = attention_flops(ROUTED, T) / attention_flops(DENSE, T)
    assert attention == (1 + 1 / 64) / 2 == pytest.approx(0.508, abs=5e-4)
    assert products(ROUTED, T)["depth predictor"][1] == 4 * 2 * 512 * 64
    assert causal_attention_flops(ROUTED, T) == attention_flops(ROUTED, T) // 2


def test_parameters():
    """Each of 4 routed layers has a vector and a network more; a token uses an eighth of it."""
    more = 512 + 512 * 64 + 64 + 64
    assert parameter_count(ROUTED) - parameter_count(DENSE) == 4 * more
    kernels = sum(w.count for w in weights(DENSE) if w.name.startswith("blocks/w"))
    used = parameter_count(DENSE) - kernels + kernels * 9 // 16 + 4 * more
    assert active_parameter_count(ROUTED) == used
    config = Config(model=ROUTED)
    assert as_dict(config)["parameters"]["active"] == used
    assert model_flops(ROUTED, T).terms[0].flops == 6 * used


def test_every_weight_has_a_row_in_the_sharding_table():
    sharding_table(stored_shapes(ROUTED), {"pod": 1, "data": 2, "model": 4})


def test_a_whole_number_of_tokens():
    """An eighth of 100 tokens are 12."""
    found = products(ROUTED, 100)
    dense = products(DENSE, 100)["feed-forward in"][1] // 8
    assert found["routed feed-forward in"][1] == 4 * (dense * 12 // 100)


def test_query_blocks_are_those_of_the_selected_tokens():
    """256 of 2048 tokens: two blocks instead of eight."""
    scores, _ = products(ROUTED, T)["routed attention scores"]
    assert scores.length(T) == 256 and len(query_blocks(scores.length(T))) == 2


def test_saved_activations_are_those_of_the_selected_tokens():
    def saved(model, remat, capacity=0.125):
        depths = DepthsConfig(capacity) if model.pattern else DepthsConfig()
        model = dataclasses.replace(model, remat=remat, depths=depths)
        estimate = memory_estimate(Config(model=model, train=TrainConfig(batch_size=8)), 1)
        return {part.name: part.bytes for part in estimate.parts}["saved activations"]

    assert saved(ROUTED, "full") == saved(DENSE, "full"), "every block's input"
    assert 0.56 < saved(ROUTED, "attention") / saved(DENSE, "attention") < 0.65
    assert saved(ROUTED, "attention", 0.5) > saved(ROUTED, "attention")


def test_there_is_no_energy_table():
    with pytest.raises(UserError, match="routed blocks of parallel parallel_routed; leave out"):
        as_dict(Config(model=ROUTED), energy=True)


def test_a_report_has_both_losses_and_the_metrics_of_routers(tmp_path):
    metrics = {"routed_tokens/0": 0.125, "predictor_tokens/0": 0.25, "predictor_accuracy/0": 0.875}
    lines = [
        {"event": "start", "step": 0, "time": 0.0},
        {"step": 1, "loss": 5.0, "gradient_norm": 1.0, "time": 1.0, **metrics},
        {"event": "evaluation", "step": 1, "loss": 4.5, "loss_by_predictor": 4.75, "time": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sections = dict(rows([summarize(read_history(tmp_path))]))
    routers = {label: cell for label, (cell,) in sections["Routers, at the last step"]}
    assert routers == {
        "Tokens in routed blocks": "12.50%",
        "Tokens that the predictor routes": "25.00%",
        "Predictor agrees with the router": "87.50%",
    }
    cells = dict(sections["Run"])
    assert cells["validation loss, last"] == ["4.5000 at step 1"]
    assert cells["routed by the predictor, last"] == ["4.7500 at step 1"]
