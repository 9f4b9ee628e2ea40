import dataclasses
import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from paxlike.accounting.info import as_dict, describe
from paxlike.accounting.units import gib, si
from paxlike.config import Config, DataConfig, MeshConfig, ModelConfig, QuantConfig, TrainConfig

PALM_540B = Config(
    name="palm_540b",
    model=ModelConfig(
        layers=118,
        heads=48,
        kv_heads=1,
        head_dim=256,
        d_model=18432,
        d_ff=73728,
        vocab_size=256_000,
        remat="palm",
    ),
    data=DataConfig(sequence_length=2048),
    train=TrainConfig(steps=255_000, batch_size=2048, batch_ramp=((512, 50_000), (1024, 115_000))),
    mesh=MeshConfig(pod=2, data=256, model=12),
)


def shown(*arguments, **more) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(describe(*arguments, **more))
    return console.export_text()


def test_palm_540b_as_text():
    text = shown(PALM_540B, energy=True, extra=["a table of the caller"])
    for words in (
        "540,356,474,880", "3.278 TFLOP", "4.100 TFLOP", "6N + 12LHQT + 0.75·2N + 4LHQT",
        "palm_no_embedding", "feed-forward in again", "775,946,240,000",
        "pod 2 x data 256 x model 12", "6,144 devices", "bitnet", "7nm", "a table of the caller",
    ):  # fmt: skip
        assert words in text, words


def test_json_has_the_same_numbers():
    result = json.loads(json.dumps(as_dict(PALM_540B, energy=True)))
    assert (
        result["parameters"]["total"]
        == 540_356_474_880
        == sum(result["parameters"]["by_part"].values())
    )
    flops = result["flops_per_token"]
    assert f"{flops['model']['palm']['total'] / 1e12:.2f}" == "3.28"
    assert f"{flops['hardware']['total'] / 1e12:.2f}" == "4.10"
    assert flops["executed"]["total"] == sum(term["flops"] for term in flops["executed"]["terms"])
    assert flops["executed"]["total"] == sum(flops["by_part"].values())
    assert result["tokens"]["total"] == 2048 * (512 * 50_000 + 1024 * 65_000 + 2048 * 140_000)
    assert (
        result["training_flops"]["palm"]
        == result["tokens"]["total"] * flops["model"]["palm"]["total"]
    )
    assert (
        result["memory"]["total"] == sum(result["memory"]["bytes"].values())
        and result["memory"]["devices"] == 6144
    )
    assert set(result["energy"]["7nm"]) == {"fp32", "fp16", "bitnet"}


def test_quantized_model_has_packed_size():
    """A column of 9 rows takes 2 bytes, of which 7 bits are padding."""
    small = ModelConfig(
        layers=2,
        d_model=9,
        heads=2,
        head_dim=4,
        d_ff=9,
        vocab_size=128,
        quant=QuantConfig("bitnet"),
    )
    kernels = 2 * (9 // 8 + 1) * (2 * 4 + 2 * 4 + 2 * 9) + 2 * (8 // 8) * 9 + 2 * (9 // 8 + 1) * 9
    config = dataclasses.replace(PALM_540B, model=small, mesh=MeshConfig())
    assert as_dict(config)["parameters"]["packed_bytes"] == kernels + 4 * (128 * 9 + 9)
    assert "packed by `paxlike pack`" in shown(config)
    assert (
        "packed" not in shown(PALM_540B) and "packed_bytes" not in as_dict(PALM_540B)["parameters"]
    )


def test_memory_requires_number_of_devices():
    open_mesh = dataclasses.replace(PALM_540B, mesh=MeshConfig(data=-1, model=12))
    assert "memory" not in as_dict(open_mesh) and "Specify it with `--devices`" in shown(open_mesh)
    assert as_dict(open_mesh, devices=3072)["memory"]["mesh"] == {
        "pod": 1,
        "data": 256,
        "model": 12,
    }
    assert "energy" not in as_dict(open_mesh)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.2777e12, "3.278 TFLOP"),
        (4.1e12, "4.100 TFLOP"),
        (999.96, "1.000 KFLOP"),
        (-13_160_448, "-13.16 MFLOP"),
        (2.5566e24, "2.557e+24 FLOP"),
    ],
)
def test_si(value, text):
    assert si(value, "FLOP") == text
    assert si(0, "FLOP", 1) == "0 FLOP"


def test_gib():
    assert [gib(n) for n in (10 * 2**30, 3 * 2**20, 1536, 7)] == [
        "10.00 GiB",
        "3.00 MiB",
        "1.50 KiB",
        "7 bytes",
    ]


def test_accounting_imports_neither_jax_nor_numpy():
    """This keeps `paxlike info` fast."""
    modules = (
        "flops hardware throughput energy hlo hlo_walk hlo_matmuls hlo_collectives info memory "
        "parameters units"
    )
    code = (
        f"import sys; {'; '.join(f'import paxlike.accounting.{m}' for m in modules.split())}; "
        + ("print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])")
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
