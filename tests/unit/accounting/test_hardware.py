import pytest

from paxlike.accounting.hardware import CHIPS, chip_named, chip_of_device, measured_cpu
from paxlike.accounting.units import GB, GiB
from paxlike.config import UserError


@pytest.mark.parametrize(
    ("kind", "name", "bf16_tera", "memory"),
    [
        ("TPU v4", "v4", 275, 32 * GiB),
        ("TPU v5 lite", "v5e", 197, 16 * GB),
        ("TPU v5", "v5p", 459, 95 * GiB),
        ("TPU v5p", "v5p", 459, 95 * GiB),
        ("TPU v6 lite", "v6e", 918, 32 * GiB),
        ("TPU7x", "v7x", 2307, 192 * GiB),
        ("NVIDIA A100-SXM4-80GB", "a100", 312, 80 * GB),
        ("NVIDIA H100 80GB HBM3", "h100", 989, 80 * GB),
        ("NVIDIA H100 PCIe", "h100-pcie", 756, 80 * GB),
        ("NVIDIA H100 NVL", "h100-nvl", 835, 94 * GB),
        ("NVIDIA H200", "h200", 989, 141 * GB),
        ("NVIDIA B200", "b200", 2250, 192 * GB),
    ],
)
def test_row_by_device_kind(kind, name, bf16_tera, memory):
    chip = chip_of_device(kind)
    assert chip is chip_named(name.upper())
    assert (chip.peak(), chip.memory) == (bf16_tera * 1e12, memory)


@pytest.mark.parametrize(
    "kind", ["NVIDIA H100", "NVIDIA H200 NVL", "TPU v4 lite", "TPU v9", "cpu", ""]
)
def test_unknown_device_error_explains_how_to_add_it(kind):
    with pytest.raises(
        UserError, match=r"no row in the hardware table.*Add a row to CHIPS.*dense peaks"
    ):
        chip_of_device(kind)


def test_unknown_name_error_lists_the_names():
    with pytest.raises(UserError, match=r"no chip 'h300'.*v5e.*h100-nvl"):
        chip_named("h300")


def test_v7x_device_is_half_a_chip():
    chip = chip_named("v7x")
    assert chip.chips(8) == 4
    assert chip.device_memory == 96 * GiB
    assert chip_named("v4").chips(8) == 8


def test_peaks_are_dense_and_by_dtype():
    assert chip_named("h100").peak("float8") == 1979e12  # 3958 on the data sheet, with sparsity
    assert chip_named("v5p").peak("int8") == 2 * chip_named("v5p").peak("float8")
    with pytest.raises(UserError, match=r"no peak for float8.*bfloat16, int8"):
        chip_named("v4").peak("float8")


def test_rows_are_complete_and_plausible():
    kinds = [kind for chip in CHIPS for kind in chip.device_kinds]
    names = [chip.name for chip in CHIPS]
    assert len(set(kinds)) == len(kinds) and len(set(names)) == len(names)
    for chip in CHIPS:
        assert chip.source and chip.device_kinds, chip.name
        assert (
            10e12 < chip.peak() < 1e16
            and 10e9 < chip.memory < 1e12
            and 1e11 < chip.bandwidth < 1e13
        ), chip.name
        # Memory is faster than links, and the peak FLOP/s exceed the memory's bytes/s.
        assert chip.link_count * chip.link_bandwidth < chip.bandwidth < chip.peak(), chip.name
        assert chip.network_bandwidth < 1e11, chip.name


def test_links_are_one_way():
    assert chip_named("v5e").link_count * chip_named("v5e").link_bandwidth == pytest.approx(200e9)
    assert chip_named("v4").link_bandwidth == 4.5e10
    assert chip_named("h100").link_bandwidth == 450e9


def test_cpu_row_is_measured():
    chip = measured_cpu(206e9, "float32", devices=8)
    assert chip.peak("float32") == 206e9 and chip.chips(8) == 1
    assert "measured" in chip.peak_text("float32") and "0.206 TFLOP/s" in chip.peak_text("float32")
    with pytest.raises(UserError, match="greater than 0"):
        measured_cpu(0.0, "float32")


def test_peak_text_has_chip_dtype_and_source():
    text = chip_named("v4").peak_text()
    assert text == "275 TFLOP/s dense bfloat16 per TPU v4 (Google Cloud documentation, TPU v4)"
    assert chip_named("v4").peak_text("int8").startswith("275 TOP/s")
