"""The GPU bench, without a GPU: it runs at a small size, imports no more than a vendor's image has, and its table says what is missing."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import device_batch, host_batch, host_params, mean_loss, mesh_of, place

from paxlike.accounting.flops import executed_flops
from paxlike.accounting.parameters import parameter_count
from paxlike.nn.weight import Numerics
from tools.bench import gpu, gpu_compile, gpu_step
from tools.bench.gpu_sizes import REAL, SIZES

MORE_THAN_THE_CORE = ("grain", "orbax", "tyro", "sentencepiece", "tensorboardX", "safetensors", "torch")
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="torch is not installed (extra bench)"
)


def test_sizes_are_what_they_are_called():
    counts = {name: parameter_count(SIZES[name].model) / 1e6 for name in REAL}
    assert counts == pytest.approx({"125m": 125, "1b": 1015, "1b-8192": 1015, "3b": 3020, "8b": 8632}, rel=0.02)
    for name in REAL:
        model = SIZES[name].model
        assert (model.kv_heads, model.block, model.head, model.feed_forward, model.d_ff) == (
            1, "parallel", "tied", "swiglu", 4 * model.d_model,
        )  # fmt: skip
        numerics = Numerics.of(model, SIZES[name].config(1).precision, "gpu")
        assert (numerics.attention, numerics.compute) == ("cudnn", "bfloat16")
        assert list(SIZES[name].batches) == sorted(SIZES[name].batches, reverse=True)


def test_the_step_imports_only_what_a_vendors_image_has():
    code = f"import sys, tools.bench.gpu, tools.bench.gpu_step; print([m for m in {MORE_THAN_THE_CORE} if m in sys.modules])"
    # flax brings orbax itself; whatever flax imports alone is there wherever flax is.
    bare = "import sys, flax.nnx, optax; " + code.split("; ", 1)[1]
    ours, theirs = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=gpu.ROOT).stdout
        for text in (code, bare)
    )
    assert ours == theirs


def test_a_step_is_measured(capsys):
    gpu_step.main(["test", "2"])
    told = json.loads(capsys.readouterr().out)
    assert len(told["seconds"]) * gpu_step.STEPS >= 20
    assert told["tokens_per_second"] == pytest.approx(2 * 64 / sorted(told["seconds"])[2])
    assert told["first_step"] > told["compiling"] > 0 and 0 < told["loss"] < 10


def test_shares_of_the_peak(monkeypatch):
    class H200:
        device_kind = "NVIDIA H200"

        def memory_stats(self):
            return {"peak_bytes_in_use": 5}

    monkeypatch.setattr(gpu_step.jax, "devices", lambda: [H200()])
    config = SIZES["1b"].config(16)
    told = gpu_step._told(config, Numerics.of(config.model, config.precision, "gpu"), [0.4, 0.3, 0.5])
    tokens = 16 * 2048
    shares, peak = told["utilization"], 989e12
    assert told["tokens_per_second"] == pytest.approx(tokens / 0.4) and told["peak_bytes"] == 5
    # PaLM's appendix B: 6N + 12LHQT, and half of the attention where it is causal.
    N, attention = parameter_count(config.model), 12 * 16 * 16 * 128 * 2048
    assert shares["mfu palm"] == pytest.approx((6 * N + attention) * tokens / 0.4 / peak)
    assert shares["mfu causal"] == pytest.approx((6 * N + attention / 2) * tokens / 0.4 / peak)
    assert shares["hfu"] == pytest.approx(executed_flops(config.model, 2048, "cudnn").total * tokens / 0.4 / peak)


def test_int8_and_matmul_are_measured(capsys):
    gpu_step.main(["test", "2", "--int8"])
    gpu_step.main(["--matmul", "64"])
    int8, matmul = map(json.loads, capsys.readouterr().out.splitlines())
    assert int8["speedup"] > 0 and set(int8["seconds"]) == {"bfloat16", "int8"}
    assert matmul["flops_per_second"] > 0


def test_an_option_that_is_not_in_the_table_is_named():
    with pytest.raises(gpu_step.UserError, match="no option xla_nonsense to try; there are xla_gpu"):
        gpu_step._options(["xla_nonsense"])


def test_a_batch_that_does_not_fit_is_followed_by_the_next(monkeypatch):
    tried = []

    def fake(words, **_):
        tried.append(words[-2:])
        fits = words[-1] == "4"
        return subprocess.CompletedProcess(words, 0 if fits else 3, '{"ok": 1}\n', "RESOURCE_EXHAUSTED: 9 GiB")

    monkeypatch.setattr(subprocess, "run", fake)
    assert gpu.run("gpu_step", "1b", batches=(16, 8, 4)) == {"ok": 1}
    assert tried == [["1b", "16"], ["1b", "8"], ["1b", "4"]]
    assert gpu.run("gpu_step", "1b", batches=(16,)) == {"failed": "RESOURCE_EXHAUSTED: 9 GiB"}


def measured(rate: float) -> dict:
    return {
        "tokens_per_second": rate, "batch": 8,  "peak_bytes": 2**36, "first_step": 20.0,
        "utilization": {"mfu palm": 0.55, "mfu causal": 0.5, "hfu": 0.57},
    }  # fmt: skip


def test_the_table_tells_ratios_goals_and_what_is_missing():
    found = {
        "sizes": {
            "1b": {"paxlike": measured(60e3), "torch": measured(50e3), "why": ""},
            "3b": {"paxlike": measured(20e3), "torch": {"failed": "PyTorch is not installed"}, "why": ""},
            "8b": {"paxlike": {"failed": "RESOURCE_EXHAUSTED"}, "torch": measured(5e3), "why": "it is large"},
        },
        "matmul": {"size": 8192, "flops_per_second": 790e12}, "int8": {"failed": "no kernel", "size": "1b"},
        "tried": {"remat none": measured(54e3), "xla_gpu_triton_gemm_any": {"failed": "No such compile option"}},
    }  # fmt: skip
    rows = gpu.describe(found).splitlines()
    assert rows[2] == (
        "| 1b | 2048 | 8 | 60,000 | 55.0% | 50.0% | 57.0% | 64.0 | 20.0 | 50,000 (batch 8) | 1.20 × | 52%: reached |"
    )
    assert "not measured: PyTorch is not installed |  | 58%: MISSED |" in rows[3]
    assert "failed: RESOURCE_EXHAUSTED" in rows[4]
    assert rows[6] == "A bare 8192³ bfloat16 matmul: 790 TFLOP/s."
    assert "int8 forward (1b): not measured, no kernel" in rows[7]
    assert rows[8] == "1b, remat none: 0.900 × the speed without." and rows[9].endswith("No such compile option.")
    assert rows[10] == "8b: it is large."


@pytest.mark.slow
def test_the_whole_command_at_a_small_size(tmp_path, capsys):
    gpu.main(["--size", "test", "--out", str(tmp_path)])
    assert "| test | 64 | 2 |" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert "failed" not in found["sizes"]["test"]["paxlike"] and "failed" not in found["int8"] | found["matmul"]
    assert "<svg" in (tmp_path / "gpu.svg").read_text()


def test_without_the_plugin_the_traced_program_is_counted(monkeypatch):
    def missing(*_):
        raise gpu_compile.MissingCompiler("it is not installed")

    monkeypatch.setattr(gpu_compile, "lower", missing)
    enabled = jax.config.jax_enable_compilation_cache
    told = gpu_compile.facts(SIZES["test"].config(2))
    jax.config.update("jax_enable_compilation_cache", enabled)
    assert told["how"] == "it is not installed" and told["fits"] is None
    reference = executed_flops(SIZES["test"].config(2).model, 64, "reference").total
    assert told["flops"] == pytest.approx(2 * 64 * reference, rel=1e-9)
    assert "not compiled" in gpu.describe_compiled({"test": told})


@needs_torch
def test_the_twin_computes_the_same_loss():
    import torch

    from tools.bench.gpu_torch import Decoder

    config = SIZES["test"].config(2)
    params, batch = host_params(config), host_batch(config, B=2, T=64)
    batch = batch._replace(targets=np.maximum(batch.targets, 0))
    with jax.set_mesh(mesh_of()):
        ours = float(mean_loss(config, place(config, params), device_batch(batch)))
    twin, blocks = Decoder(config), params["blocks"]
    assert sum(p.numel() for p in twin.parameters()) == parameter_count(config.model)
    with torch.no_grad():
        twin.embedding.copy_(torch.tensor(params["embedding_VD"]))
        twin.scale.copy_(torch.tensor(params["scale_D"]))
        for layer, block in enumerate(twin.blocks):
            D = config.model.d_model
            wide = [blocks[name][layer].reshape(D, -1) for name in ("wq_DNH", "wk_DKH", "wv_DKH", "wgate_DF", "wup_DF")]
            back = [blocks[name][layer].reshape(-1, D) for name in ("wo_NHD", "wdown_FD")]
            block.scale.copy_(torch.tensor(blocks["scale_D"][layer]))
            block.wide.weight.copy_(torch.tensor(np.concatenate(wide, 1).T))
            block.back.weight.copy_(torch.tensor(np.concatenate(back, 0).T))
        with torch.autocast("cpu", torch.bfloat16):
            theirs = twin(torch.tensor(batch.tokens).long(), torch.tensor(batch.targets).long()).item()
    assert theirs == pytest.approx(ours, rel=2e-3)
