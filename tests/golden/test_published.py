"""Predictions for published runs: they are complete, match the guide, and are as accurate as
stated.
"""

import json
import statistics

from paxlike.config import ModelConfig, PrecisionConfig
from paxlike.nn.numerics import Numerics
from paxlike.training import compiler_options
from tools.bench import published


def rows():
    return json.loads(published.FILE.read_text())


def test_every_run_has_a_prediction_that_the_guide_shows():
    assert [row["name"] for row in rows()] == [run.name for run in published.RUNS]
    assert [row["published"] for row in rows()] == [run.published for run in published.RUNS]
    guide = (published.ROOT / "docs" / "planning.md").read_text()
    assert published.table(rows()) in guide, "python -m tools.bench.published --table"


def test_the_median_error_is_below_6_percent_and_the_largest_below_15():
    errors = [abs(published.error(row)) for row in rows()]
    assert statistics.median(errors) < 0.06 and max(errors) < 0.15


def test_programs_inside_of_synchronous_have_no_options_and_no_ring_steps():
    def found():
        numerics = Numerics.of(ModelConfig(), PrecisionConfig(), "tpu")
        return numerics.ring, compiler_options.compiler_options("TPU v4")

    with published.synchronous():
        assert found() == (False, {})
    assert found()[0] and found()[1]


def test_programs_as_in_the_scripts_lack_the_options_that_those_do_not_set():
    usual = compiler_options.compiler_options("TPU v6 lite")
    with published.as_in_the_scripts():
        found = compiler_options.compiler_options("TPU v6 lite")
    assert set(usual) - set(found) == set(published.NOT_NAMED) and len(found) > 5


def test_a_predicted_mfu_follows_from_the_step_time():
    """MFU is tokens per predicted second times model FLOPs per token, over the chips' peak."""
    by_name = {row["name"]: row for row in rows()}
    two, one = by_name["PaLM 540B, two pods"], by_name["PaLM 540B, one pod"]
    tokens, model_flops = 2048 * 2048, 6 * 540_356_474_880 + 12 * 118 * 48 * 256 * 2048
    assert (
        abs(two["predicted"] - tokens / two["seconds"]["step"] * model_flops / (6144 * 275e12))
        < 1e-4
    )
    assert (
        abs(one["predicted"] - tokens / 2 / one["seconds"]["step"] * model_flops / (3072 * 275e12))
        < 1e-4
    )
