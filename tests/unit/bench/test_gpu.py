"""The GPU benchmark without a GPU: a smoke test, its imports, and its tables."""

import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import device_batch, host_batch, host_params, mean_loss, mesh_of, place

from paxlike.accounting.executed_flops import executed_flops
from paxlike.accounting.parameters import parameter_count
from paxlike.nn.numerics import Numerics
from tools.bench import gpu, gpu_compile, gpu_step
from tools.bench.gpu_sizes import REAL, SIZES

pytestmark = pytest.mark.slow

BEYOND_CORE = (
    "grain",
    "orbax",
    "tyro",
    "sentencepiece",
    "tensorboardX",
    "safetensors",
    "torch",
)
needs_torch = pytest.mark.optional("torch")


def test_sizes_match_their_names():
    counts = {name: parameter_count(SIZES[name].model) / 1e6 for name in REAL}
    assert counts == pytest.approx(
        {"125m": 125, "1b": 1015, "1b-8192": 1015, "3b": 3020, "8b": 8632}, rel=0.02
    )
    for name in REAL:
        model = SIZES[name].model
        assert (model.kv_heads, model.d_ff) == (1, 4 * model.d_model)
        assert (model.block, model.head, model.feed_forward) == ("parallel", "tied", "swiglu")
        numerics = Numerics.of(model, SIZES[name].config(1).precision, "gpu")
        assert (numerics.attention, numerics.compute) == ("cudnn", "bfloat16")
        assert list(SIZES[name].batches) == sorted(SIZES[name].batches, reverse=True)


def test_the_step_imports_only_packages_of_a_vendors_image():
    report = f"print([m for m in {BEYOND_CORE} if m in sys.modules])"
    code = f"import sys, tools.bench.gpu, tools.bench.gpu_step; {report}"
    # flax imports orbax; what flax imports by itself is installed wherever flax is.
    bare = f"import sys, flax.nnx, optax; {report}"
    ours, theirs = (
        subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=gpu.ROOT
        ).stdout
        for text in (code, bare)
    )
    assert ours == theirs


def test_a_step_is_measured(capsys):
    gpu_step.main(["test", "2"])
    result = json.loads(capsys.readouterr().out)
    assert len(result["seconds"]) * gpu_step.STEPS >= 20
    assert result["tokens_per_second"] == pytest.approx(2 * 64 / sorted(result["seconds"])[2])
    assert result["first_step"] > result["compiling"] > 0 and 0 < result["loss"] < 10


def test_utilization(monkeypatch):
    class H200:
        device_kind = "NVIDIA H200"

        def memory_stats(self):
            return {"peak_bytes_in_use": 5}

    monkeypatch.setattr(gpu_step.jax, "devices", lambda: [H200()])
    config = SIZES["1b"].config(16)
    result = gpu_step._summary(
        config, Numerics.of(config.model, config.precision, "gpu"), [0.4, 0.3, 0.5]
    )
    tokens = 16 * 2048
    shares, peak = result["utilization"], 989e12
    assert result["tokens_per_second"] == pytest.approx(tokens / 0.4) and result["peak_bytes"] == 5
    # PaLM, appendix B: 6N + 12LHQT; causal attention counts half.
    N, attention = parameter_count(config.model), 12 * 16 * 16 * 128 * 2048
    assert shares["mfu palm"] == pytest.approx((6 * N + attention) * tokens / 0.4 / peak)
    assert shares["mfu causal"] == pytest.approx((6 * N + attention / 2) * tokens / 0.4 / peak)
    assert shares["hfu"] == pytest.approx(
        executed_flops(config.model, 2048, "cudnn").total * tokens / 0.4 / peak
    )


def test_int8_and_matmul_are_measured(capsys):
    gpu_step.main(["test", "2", "--int8"])
    gpu_step.main(["--matmul", "64"])
    int8, matmul = map(json.loads, capsys.readouterr().out.splitlines())
    assert int8["speedup"] > 0 and set(int8["seconds"]) == {"bfloat16", "int8"}
    assert matmul["flops_per_second"] > 0


def test_an_unknown_option_is_an_error():
    with pytest.raises(
        gpu_step.UserError, match="Unknown option xla_nonsense; choose from xla_gpu"
    ):
        gpu_step._options(["xla_nonsense"])


def test_the_next_batch_is_tried_if_one_does_not_fit(monkeypatch):
    tried = []

    def fake(words, **_):
        tried.append(words[-2:])
        fits = words[-1] == "4"
        return subprocess.CompletedProcess(
            words, 0 if fits else 3, '{"ok": 1}\n', "RESOURCE_EXHAUSTED: 9 GiB"
        )

    monkeypatch.setattr(subprocess, "run", fake)
    assert gpu.run("gpu_step", "1b", batches=(16, 8, 4)) == {"ok": 1}
    assert tried == [["1b", "16"], ["1b", "8"], ["1b", "4"]]
    assert gpu.run("gpu_step", "1b", batches=(16,)) == {"failed": "RESOURCE_EXHAUSTED: 9 GiB"}


def measured(rate: float) -> dict:
    return {
        "tokens_per_second": rate,
        "batch": 8,
        "peak_bytes": 2**36,
        "first_step": 20.0,
        "utilization": {"mfu palm": 0.55, "mfu causal": 0.5, "hfu": 0.57},
    }


def test_the_table_shows_ratios_goals_and_failures():
    found = {
        "sizes": {
            "1b": {"paxlike": measured(60e3), "torch": measured(50e3), "why": ""},
            "3b": {
                "paxlike": measured(20e3),
                "torch": {"failed": "PyTorch is not installed"},
                "why": "",
            },
            "8b": {
                "paxlike": {"failed": "RESOURCE_EXHAUSTED"},
                "torch": measured(5e3),
                "why": "it is large",
            },
        },
        "matmul": {"size": 8192, "flops_per_second": 790e12},
        "int8": {"failed": "no kernel", "size": "1b"},
        "tried": {
            "remat none": measured(54e3),
            "xla_gpu_triton_gemm_any": {"failed": "No such compile option"},
        },
    }
    rows = gpu.describe(found).splitlines()
    assert rows[2] == (
        "| 1b | 2048 | 8 | 60,000 | 55.0% | 50.0% | 57.0% | 64.0 | 20.0 | 50,000 (batch 8) "
        "| 1.20 × | 52%: reached |"
    )
    assert "not measured: PyTorch is not installed |  | 58%: MISSED |" in rows[3]
    assert "failed: RESOURCE_EXHAUSTED" in rows[4]
    assert rows[6] == "A bare 8192³ bfloat16 matmul: 790 TFLOP/s."
    assert "int8 forward (1b): not measured, no kernel" in rows[7]
    assert rows[8] == "1b, remat none: 0.900 × the speed without." and rows[9].endswith(
        "No such compile option."
    )
    assert rows[10] == "8b: it is large."


def test_the_whole_command_with_a_small_model(tmp_path, capsys):
    gpu.main(["--size", "test", "--out", str(tmp_path)])
    assert "| test | 64 | 2 |" in capsys.readouterr().out
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert (
        "failed" not in found["sizes"]["test"]["paxlike"]
        and "failed" not in found["int8"] | found["matmul"]
    )
    assert "<svg" in (tmp_path / "gpu.svg").read_text()


def test_without_the_plugin_flops_are_those_of_the_traced_program(monkeypatch):
    def missing(*_):
        raise gpu_compile.MissingCompiler("it is not installed")

    monkeypatch.setattr(gpu_compile, "lower", missing)
    enabled = jax.config.jax_enable_compilation_cache
    result = gpu_compile.facts(SIZES["test"].config(2))
    jax.config.update("jax_enable_compilation_cache", enabled)
    assert result["how"] == "it is not installed" and result["fits"] is None
    reference = executed_flops(SIZES["test"].config(2).model, 64, "reference").total
    assert result["flops"] == pytest.approx(2 * 64 * reference, rel=1e-9)
    assert "not compiled" in gpu.describe_compiled({"test": result})


@needs_torch
def test_the_torch_baseline_computes_the_same_loss():
    import torch

    from tools.bench.gpu_torch import Decoder

    config = SIZES["test"].config(2)
    params, batch = host_params(config), host_batch(config, B=2, T=64)
    batch = batch._replace(targets=np.maximum(batch.targets, 0))
    with jax.set_mesh(mesh_of()):
        loss = jax.jit(functools.partial(mean_loss, config))
        ours = float(loss(place(config, params), device_batch(batch)))
    torch_model, blocks = Decoder(config), params["blocks"]
    assert sum(p.numel() for p in torch_model.parameters()) == parameter_count(config.model)
    with torch.no_grad():
        torch_model.embedding.copy_(torch.tensor(params["embedding_VD"]))
        torch_model.scale.copy_(torch.tensor(params["scale_D"]))
        for layer, block in enumerate(torch_model.blocks):
            D = config.model.d_model
            into = [
                blocks[name][layer].reshape(D, -1)
                for name in ("wq_DNH", "wk_DKH", "wv_DKH", "wgate_DF", "wup_DF")
            ]
            out = [blocks[name][layer].reshape(-1, D) for name in ("wo_NHD", "wdown_FD")]
            block.scale.copy_(torch.tensor(blocks["scale_D"][layer]))
            block.into.weight.copy_(torch.tensor(np.concatenate(into, 1).T))
            block.out.weight.copy_(torch.tensor(np.concatenate(out, 0).T))
        with torch.autocast("cpu", torch.bfloat16):
            theirs = torch_model(
                torch.tensor(batch.tokens).long(), torch.tensor(batch.targets).long()
            ).item()
    assert theirs == pytest.approx(ours, rel=2e-3)
