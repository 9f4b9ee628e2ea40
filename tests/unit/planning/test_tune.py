"""The search: its order, what it does not compile, when it stops, and what it returns."""

import dataclasses
import inspect
import subprocess
import sys

import pytest
from helpers import model_config
from rich.console import Console

from paxlike import cli
from paxlike.config import ConfigError, ExpertsConfig, TrainConfig, UserError, load
from paxlike.planning import tune as tuning
from paxlike.planning.expert_transports import TRANSPORTS
from paxlike.planning.topology import cluster
from paxlike.planning.tune import candidates, changed_config, tune
from paxlike.planning.tuned import command, describe_tuned, differing, write_tuned_config

CONFIG = changed_config(model_config(remat="dots"), (("train", "batch_size", 8),))
V4 = cluster("v4:2x2x2")


def search(monkeypatch, step_of, minutes=1e9, clock=None, cluster=V4, fits=lambda config: True):
    """The search with a fake compiler: step_of(config[, options]) -> seconds for 8 sequences."""
    compiled = []
    told_options = len(inspect.signature(step_of).parameters) == 2

    def plan(config, made, options):
        compiled.append((config, options) if told_options else config)
        arguments = (config, options) if told_options else (config,)
        step = step_of(*arguments) * config.train.batch_size / 8
        tokens = config.train.batch_size * config.data.sequence_length
        return {
            "fits": fits(config),
            "memory": {"needed": 2**30},
            "mesh": {"model": config.mesh.model},
            "refused": "",
            "predicted": {
                "mfu": 0.5,
                "tokens_per_second": tokens / step,
                "seconds": {"step": step},
            },
        }

    monkeypatch.setattr(tuning, "plan", plan)
    said = []
    given = {} if clock is None else {"clock": clock}
    return tune(CONFIG, cluster, minutes, said.append, **given), compiled, said


def test_candidates_are_valid_different_and_begin_with_the_given_one():
    found = list(candidates(CONFIG, 8))
    assert found[0].config == CONFIG and found[0].flags == ""
    assert len({c.flags for c in found}) == len(found) > 50
    for candidate in found:
        assert changed_config(CONFIG, candidate.changes) == candidate.config
        candidate.config.mesh.resolve(8)


def test_expert_shards_and_transports_are_candidates():
    """All that divide the 4 experts, each with both transports."""
    experts = ExpertsConfig(4, 2, 32)
    config = model_config(block="serial_experts", experts=experts)
    found = {(c.config.mesh.expert, c.config.mesh.expert_transport) for c in candidates(config, 8)}
    assert found == {(1, "gather"), *((n, way) for n in (2, 4) for way in TRANSPORTS)}
    assert {c.config.mesh.expert for c in candidates(CONFIG, 8)} == {1}


def test_the_fastest_is_found_and_the_given_config_is_compiled_first(monkeypatch):
    def step(config):
        return 1.0 if config.mesh.model == 4 and config.train.accumulate == 2 else 2.0

    result, compiled, said = search(monkeypatch, step)
    assert compiled[0] == CONFIG == compiled[1]  # with all options, and without one
    best = result["rows"][0]
    assert "--mesh.model 4" in best["flags"] and "--train.accumulate 2" in best["flags"]
    assert result["left"] == 0 and len(said) == result["tried"] == len(compiled)
    assert "best MFU 50.0%" in said[-1]


def test_it_is_never_worse_than_the_given_config(monkeypatch):
    result, *_ = search(monkeypatch, lambda config: 1.0 if config == CONFIG else 100.0)
    assert result["rows"][0]["flags"] == ""


V5P = cluster("v5p:2x2x2")
FUSION = {"xla_tpu_enable_async_collective_fusion": False}
OFFLOAD = "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter"


def test_options_that_slow_the_given_config_down_stay_off(monkeypatch):
    def step(config, options):
        return (1.0 if FUSION.items() <= options.items() else 1.5) + (OFFLOAD in options)

    result, compiled, _ = search(monkeypatch, step, cluster=V5P)
    (given, none), (same, fusion), (_, both), *others = compiled
    assert given == same == CONFIG and not none and fusion == FUSION and OFFLOAD in both
    assert len(others) > 20 and all(options == FUSION for _, options in others)
    best = result["rows"][0]
    assert best["options"] == FUSION and "without collective fusion" in best["flags"]
    line = command("tiny", [("mesh.model", 2)], best["options"])
    assert line == (
        "LIBTPU_INIT_ARGS=--xla_tpu_enable_async_collective_fusion=false "
        "paxlike train tiny --mesh.model 2"
    )


def test_options_that_help_stay_on(monkeypatch):
    result, compiled, _ = search(monkeypatch, lambda _, options: 1.0 + len(options), cluster=V5P)
    assert sum(bool(options) for _, options in compiled) == 2
    assert result["rows"][0]["options"] == {} and "without" not in result["rows"][0]["flags"]


def test_options_are_not_compared_on_a_config_that_does_not_fit(monkeypatch):
    def step(config, options):
        return 1.0

    result, compiled, _ = search(monkeypatch, step, cluster=V5P, fits=lambda c: c != CONFIG)
    assert not any(options for _, options in compiled) and result["rows"][0]["fits"]


def test_what_cannot_be_faster_is_not_compiled(monkeypatch):
    """`full` recomputes more than 2 %, and less than its products once more."""
    least = tuning.least_seconds_per_token(next(candidates(CONFIG, 8)), V4)
    tokens = CONFIG.train.batch_size * CONFIG.data.sequence_length
    _, compiled, _ = search(monkeypatch, lambda config: 1.02 * least * tokens)
    assert {c.model.remat for c in compiled} <= {"none", "attention", "dots"}
    _, compiled, _ = search(monkeypatch, lambda config: 2 * least * tokens)
    assert {c.model.remat for c in compiled} >= {"full"}


def test_it_stops_in_time_and_says_what_is_left(monkeypatch):
    times = iter(range(0, 10_000, 60))
    result, compiled, _ = search(monkeypatch, lambda _: 1.0, minutes=5, clock=lambda: next(times))
    assert len(compiled) < 8 and result["left"] > 20


def test_a_config_that_cannot_be_compiled_is_a_row_with_its_error(monkeypatch):
    def step(config):
        if config.mesh.model > 1:
            raise ConfigError("does not divide")
        return 1.0

    result, *_ = search(monkeypatch, step)
    assert {row["error"] for row in result["rows"]} == {"", "does not divide"}
    assert result["rows"][0]["fits"]


def test_the_result_is_a_command_and_a_config_file(monkeypatch, tmp_path, capsys):
    result, *_ = search(monkeypatch, lambda c: 1.0 if c.mesh.model == 2 else 2.0 + c.mesh.model)
    quant = dataclasses.replace(load("tiny").model.quant, weights="bitnet")
    given = changed_config(load("tiny"), (("model", "quant", quant), ("data", "seed", 7)))
    best = changed_config(given, tuple(result["rows"][0]["changes"]))
    changes = differing(load("tiny"), best)
    line = command("tiny", changes, {})
    assert line.startswith("paxlike train tiny --model.") and "--model.quant.weights bitnet" in line
    assert "--mesh.model 2" in line
    Console(width=200).print(describe_tuned(result, "tiny", changes))
    shown = capsys.readouterr().out
    assert line in shown and "% slower" in shown

    path = tmp_path / "fast.py"
    write_tuned_config(path, result, "tiny", changes)
    assert load(path) == best
    subprocess.run([sys.executable, "-m", "ruff", "check", "--isolated", str(path)], check=True)
    with pytest.raises(UserError, match="is not overwritten"):
        write_tuned_config(path, result, "tiny", changes)


def test_a_command_with_a_batch_ramp_is_read_back(monkeypatch, capsys):
    """Tuples, and tuples of tuples, are words of one flag."""
    given = changed_config(load("tiny"), (("train", "batch_ramp", ((2, 3), (4, 5))),))
    line = command("tiny", differing(load("tiny"), given), {})
    assert line == "paxlike train tiny --train.batch_ramp 2 3 4 5"
    monkeypatch.setattr(sys, "argv", ["paxlike", "info", *line.split()[2:], "--json"])
    cli.main()
    assert capsys.readouterr().out


def test_a_cluster_without_predicted_times_is_an_error():
    with pytest.raises(UserError, match="cpu:8 has no row of hardware"):
        tune(CONFIG, cluster("cpu:8"), 1.0, print)


def test_the_batch_ramp_ends_with_another_batch_size():
    ramped = changed_config(CONFIG, (("train", "batch_ramp", ((4, 1),)),))
    assert isinstance(ramped.train, TrainConfig) and ramped.train.batch_ramp
    assert changed_config(ramped, (("train", "batch_size", 16),)).train.batch_ramp == ()
