"""A plan end to end on a fake mesh of CPU devices, its cache, and what is said of configs that
cannot be.
"""

import dataclasses
import io
import json
import types

import jax
import numpy as np
import pytest
from rich.console import Console

from paxlike.accounting.executed_flops import executed_flops
from paxlike.accounting.hlo_collectives import Collective
from paxlike.config import (
    Config,
    ConfigError,
    DataConfig,
    ExpertsConfig,
    MeshConfig,
    ModelConfig,
    PrecisionConfig,
    TrainConfig,
)
from paxlike.planning import cache, make_plan
from paxlike.planning.compile import Facts, lower, read_refusal
from paxlike.planning.expert_transports import TRANSPORTS, transports_table, with_transports
from paxlike.planning.result import crossing_pod, gradient_bytes, plan_of
from paxlike.planning.simulated_step import simulated
from paxlike.planning.sweep import candidates, sweep
from paxlike.planning.topology import cluster
from paxlike.training.state import make_state
from paxlike.training.step import Program, abstract_batch

CONFIG = Config(
    name="small",
    model=ModelConfig(
        layers=3, d_model=64, heads=4, head_dim=16, d_ff=128, vocab_size=256, attention="reference"
    ),
    data=DataConfig(sequence_length=32),
    train=TrainConfig(batch_size=8),
    mesh=MeshConfig(model=2),
)
CPU = cluster("cpu:8")


def changed(section, **fields):
    return make_plan._with(CONFIG, section, **fields)


def test_a_plan_on_a_fake_mesh(tmp_path, monkeypatch):
    told = make_plan.plan(CONFIG, CPU)
    assert told["mesh"] == {"pod": 1, "data": 4, "model": 2} and told["fits"] is None
    tokens = 8 * 32
    assert (
        told["flops"]["per_device"] * 8
        == executed_flops(CONFIG.model, 32, "reference").total * tokens
    )
    parts = told["memory"]["parts"]
    assert (
        parts["optimizer state"] == 2 * parts["parameters"] + 4 and parts["batch"] == 2 * 2 * 32 * 4
    )
    assert (
        parts["parameters"] + parts["optimizer state"]
        < told["memory"]["needed"]
        <= sum(parts.values())
    )
    gathered = [
        r
        for r in told["collectives"]
        if r["kind"] == "all-gather" and r["axis"] == "data" and r["in_layer_loop"]
    ]
    assert gathered and all(row["times"] % 3 == 0 for row in gathered)
    assert told["crossing_pod"] == {
        "bytes": 0,
        "gradient_bytes": 0,
        "verdict": "one pod: nothing crosses.",
    }
    assert json.loads(json.dumps(told)) == told

    # A second time nothing is compiled; another batch is another program.
    assert not told["compile"]["cached"]
    monkeypatch.setattr(cache, "compile_facts", lambda lowered: pytest.fail("compiled again"))
    again = make_plan.plan(CONFIG, CPU)
    assert again["compile"].pop("cached") and again | {"compile": 0} == told | {"compile": 0}
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        make_plan.plan(changed("train", batch_size=16), CPU)


def test_a_spoiled_cache_is_written_anew(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        cache,
        "compile_facts",
        lambda lowered: compiled.append(1) or facts_of(seconds=float(len(compiled))),
    )
    lowered = lower(CONFIG, CPU)
    cache.facts(lowered)
    (file,) = (tmp_path / "plans").iterdir()
    file.write_text(file.read_text()[:100])
    assert cache.facts(lowered) == (facts_of(seconds=2.0), False)
    assert cache.facts(lowered) == (facts_of(seconds=2.0), True) and len(compiled) == 2


def test_the_program_is_the_one_that_train_runs():
    """The loop compiles the same function for the same shapes (`training/loop.py`); only its arrays
    are there.
    """
    lowered = lower(CONFIG, CPU)
    with jax.set_mesh(lowered.mesh):
        program = Program.of(CONFIG, lowered.numerics)
        state = make_state(CONFIG, lowered.numerics, program.optimizer)
        batch = jax.tree.map(
            lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding),
            abstract_batch(CONFIG, 8, segments=False),
        )
        assert program.train_step.lower(state, batch).as_text() == lowered.stage.as_text()


@pytest.mark.parametrize(
    ("config", "topology", "pods", "message"),
    [
        (CONFIG, "cpu:8", 2, "--pods is 2, but mesh.pod is 1; set --mesh.pod 2"),
        (
            changed("mesh", model=3),
            "cpu:8",
            None,
            r"cpu:8, 1 pods: mesh pod 1 x data -1 x model 3 does not fit 8 devices",
        ),
        (changed("mesh", pod=2, data=4, model=2), "v4:2x2x2", None, None),
        (changed("mesh", pod=3), "v4:2x2x2", 2, "--pods is 2, but mesh.pod is 3"),
    ],
)
def test_meshes_that_do_not_fit_the_cluster(config, topology, pods, message):
    if message is None:
        assert make_plan.prepare(config, topology, pods)[1].device_count == 16
        return
    with pytest.raises(ConfigError, match=message):
        make_plan.prepare(config, topology, pods)


def test_what_the_compiler_says_when_it_refuses():
    gross = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (143.64G) exceeds "
    )
    gross += "available HBM (30.75G)."
    assert read_refusal(gross) == (int(143.64 * 2**30), [])
    used = "Used 32.47G of 30.75G hbm. Exceeded hbm capacity by 1.72G."
    listed = f"RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. {used}"
    listed += """

  Largest program allocations in hbm:

  1. Size: 4.00G
     Operator: op_name="jit(train_step)/jvp()/while/body/mul" source_file="a.py"
     Shape: bf16[32,8,2048,4096]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 4.00G
     ==========================

  2. Size: 512.00M
     Shape: f32[16,2048]{1,0}
"""
    needed, buffers = read_refusal(listed)
    assert needed == int(32.47 * 2**30)
    assert buffers[0] == [
        4 * 2**30,
        "while/body/mul",
        "bf16[32,8,2048,4096]{3,2,1,0:T(8,128)(2,1)}",
    ]
    assert buffers[1] == [512 * 2**20, "unnamed", "f32[16,2048]{1,0}"]


def collective(kind, axis, payload, times=1):
    return Collective(kind, axis, 2, "bf16", payload, payload, times, True, "c", "")


def test_what_crosses_pod_is_compared_with_the_gradient():
    config = dataclasses.replace(CONFIG, precision=PrecisionConfig(gradients="bfloat16"))
    mesh = {"pod": 2, "data": 4, "model": 2}
    wanted = gradient_bytes(config, mesh)
    # All but the norm scales are cut by data x model, those by model alone; 2 bytes each.
    scales = 4 * 64
    matrices = 256 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 16 + 3 * 64 * 128)
    assert wanted == 2 * (matrices // 8 + scales // 2)
    fine = crossing_pod(
        config,
        mesh,
        [collective("all-reduce", "pod", wanted), collective("all-gather", "data", 10**9)],
    )
    assert fine["bytes"] == wanted and fine["verdict"].startswith("only the gradient")
    more = crossing_pod(config, mesh, [collective("all-reduce", "pod", 2**23, 2)])
    assert f"{2**24 - wanted:,} bytes more than the gradient cross" in more["verdict"]
    other = crossing_pod(config, mesh, [collective("all-gather", "pod+data", 8)])
    assert "also all-gather over pod+data cross" in other["verdict"]


def facts_of(**changes):
    given = {
        "mesh": {"pod": 1, "data": 4, "model": 2},
        "memory": {"parameters": 100},
        "needed": 2**30,
        "refused": "",
        "buffers": [],
        "flops": 10**12,
        "uncounted": [],
        "work": [["dot", "", 2, 10**12, 0, False, False]],
        "collectives": [],
        "items": [["loop", 2, [["work", 0]]]],
        "seconds": 1.0,
        "process_bytes": 1,
    }
    return Facts(**given | changes)


def test_a_prediction_by_hand():
    devices = np.array([types.SimpleNamespace(coords=(i, 0, 0)) for i in range(8)], object).reshape(
        1, 4, 2
    )
    made, found = cluster("v4:2x2x2"), facts_of()
    told = plan_of(CONFIG, made, found, simulated(CONFIG, made, found, devices))
    predicted = told["predicted"]
    step = 2 * 10**12 / (275e12 * 0.8)
    assert predicted["seconds"]["step"] == pytest.approx(step)
    assert predicted["tokens_per_second"] == pytest.approx(256 / step)
    assert (
        predicted["hfu"]
        == pytest.approx(256 / step * told["flops"]["per_token"] / (8 * 275e12))
        == pytest.approx(0.4)
    )
    assert predicted["mfu"] / predicted["hfu"] == pytest.approx(
        1 / told["flops"]["hardware_over_model"]
    )
    budget = 300 * 256
    assert predicted["budget_tokens"] == budget
    assert predicted["days"] == pytest.approx(budget / 256 * step / 86400)
    assert predicted["chip_hours"] == pytest.approx(predicted["days"] * 24 * 8)
    assert told["fits"] is True
    larger = facts_of(needed=31 * 2**30)
    step = simulated(CONFIG, made, larger, devices)
    assert plan_of(CONFIG, made, larger, step)["fits"] is False


def test_changes_that_need_less_memory():
    tried = dict(make_plan.changes(CONFIG))
    assert list(tried) == [
        "model.remat attention",
        "model.remat dots",
        "model.remat full",
        "mesh.model 4",
        "train.accumulate 2",
        "train.batch_size 4",
    ]
    assert (
        tried["mesh.model 4"].mesh.model == 4 and tried["train.accumulate 2"].train.accumulate == 2
    )


def test_remedies_are_tried_where_it_does_not_fit(monkeypatch):
    def fake(config, made, say):
        if config.mesh.model == 4:
            raise ConfigError("no")
        return {"fits": config.train.accumulate == 2, "memory": {"needed": config.train.batch_size}}

    monkeypatch.setattr(make_plan, "plan", fake)
    rows = make_plan.with_remedies({"fits": False}, CONFIG, CPU, print)["remedies"]
    assert [row["change"] for row in rows] == list(dict(make_plan.changes(CONFIG)))
    assert [row.get("fits") for row in rows] == [False, False, False, None, True, False]
    assert rows[3] == {"change": "mesh.model 4", "error": "no"} and rows[5]["needed"] == 4
    assert make_plan.with_remedies({"fits": True}, CONFIG, CPU, print) == {"fits": True}
    assert make_plan.with_remedies({"fits": None}, CONFIG, CPU, print) == {"fits": None}


def test_a_sweep_is_best_first(monkeypatch):
    made = candidates(CONFIG)
    assert {(c.mesh.model, c.model.remat, c.train.batch_size) for c in made} == {
        (m, r, b) for m in (1, 2, 4) for r in ("none", "attention", "dots", "full") for b in (8, 4)
    }

    def fake(config, made, say):
        if config.mesh.model == 4:
            raise ConfigError("no")
        speed = config.train.batch_size + (config.model.remat == "none")
        told = {"mesh": {}, "fits": config.mesh.model == 1, "memory": {"needed": 5}, "refused": ""}
        seconds = {"step": 1.0}
        return told | {
            "predicted": {
                "mfu": speed,
                "hfu": 1,
                "tokens_per_second": 1,
                "days": 1,
                "seconds": seconds,
            }
        }

    monkeypatch.setattr("paxlike.planning.sweep.plan", fake)
    rows = sweep(CONFIG, CPU, lambda text: None)
    assert len(rows) == 24 and (rows[0]["model"], rows[0]["remat"], rows[0]["batch_size"]) == (
        1,
        "none",
        8,
    )
    assert [row["fits"] for row in rows] == [True] * 8 + [False] * 16
    assert all(row["error"] == "no" for row in rows[-8:])


def test_a_plan_with_expert_shards_has_both_transports():
    """On a fake mesh. An all-to-all sends T k rows, a gather and a scatter of D / model twice those
    of the other devices; the weights of a device are those of its own experts."""
    model = dataclasses.replace(
        CONFIG.model, block="serial_experts", feed_forward="swiglu", experts=ExpertsConfig(4, 2, 32)
    )
    config = dataclasses.replace(CONFIG, model=model, mesh=MeshConfig(data=2, model=2, expert=2))
    made = cluster("cpu:8")
    result = make_plan.plan(config, made)
    assert result["mesh"] == {"pod": 1, "data": 2, "expert": 2, "model": 2}
    rows = with_transports(result, config, made, lambda text: None)["transports"]
    gathered, sent = rows
    assert [row["transport"] for row in rows] == list(TRANSPORTS) == ["gather", "all_to_all"]
    assert gathered["sent_bytes"] and sent["sent_bytes"] and "error" not in sent
    kinds = [c["kind"] for c in result["collectives"] if c["axis"] == "expert"]
    assert set(kinds) <= {"all-gather", "reduce-scatter", "all-reduce"}
    table = Console(width=140, file=io.StringIO(), record=True)
    table.print(transports_table(rows))
    assert "all_to_all" in table.export_text()
    assert with_transports({}, CONFIG, made, print) == {}, "without expert shards there is one way"
