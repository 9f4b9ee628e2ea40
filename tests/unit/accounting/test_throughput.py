import pytest

from paxlike.accounting.flops import hardware_flops, model_flops
from paxlike.accounting.hardware import chip_named
from paxlike.accounting.throughput import CAUSES, Goodput, fraction_productive, utilization
from paxlike.config import ModelConfig, UserError

MODEL = ModelConfig(
    layers=118,
    heads=48,
    kv_heads=1,
    head_dim=256,
    d_model=18432,
    d_ff=73728,
    vocab_size=256_000,
    remat="palm",
)
GIVEN = {"tokens_per_second": 238.3e3, "chips": 6144, "chip": chip_named("v4")}


def mfu(**given):
    return utilization("MFU", model_flops(MODEL, 2048), **given)


def test_formula_has_its_numbers_and_gives_the_result():
    result = mfu(**GIVEN)
    assert result.formula == (
        "MFU 46.2% = 238,300 tokens/s x 3.278 TFLOP/token (palm: 6N + 12LHQT) "
        "/ (6,144 chips x 275 TFLOP/s)"
    )
    assert 238_300 * 3.278 / (6144 * 275) == pytest.approx(result.fraction, rel=1e-4)
    assert "Google Cloud documentation, TPU v4" in result.peak
    assert utilization("HFU", hardware_flops(MODEL, 2048), **GIVEN).formula.startswith("HFU 57.8%")


def test_two_v7x_devices_are_one_chip():
    chip = chip_named("v7x")
    whole = mfu(tokens_per_second=1e4, chips=chip.chips(64), chip=chip)
    wrong = mfu(tokens_per_second=1e4, chips=64, chip=chip)
    assert whole.fraction == 2 * wrong.fraction


@pytest.mark.parametrize(
    ("target", "words"), [(0.5, None), (0.84, None), (0.9, "implausible"), (1.52, "impossible")]
)
def test_warning_near_and_above_the_peak(target, words):
    rate = target * 6144 * 275e12 / model_flops(MODEL, 2048).total
    warning = mfu(**{**GIVEN, "tokens_per_second": rate}).warning
    if words is None:
        assert warning is None
    else:
        assert (
            words in warning
            and "asynchronous" in warning
            and "other programs ran" in warning
            and f"{target:.1%}" in warning
        )


@pytest.mark.parametrize(
    "bad", [{"tokens_per_second": 0}, {"chips": -1}, {"tokens_per_second": float("nan")}]
)
def test_invalid_rates_raise_errors(bad):
    with pytest.raises(UserError, match="greater than 0"):
        mfu(**{**GIVEN, **bad})


def test_dtype_without_peak_raises_error():
    with pytest.raises(UserError, match="no peak for float8"):
        utilization("MFU", model_flops(MODEL, 2048), 1e5, 16, chip_named("v4"), "float8")


def wall(goodput):
    return sum(goodput.seconds().values())


class Clock:
    """A clock in nanoseconds that advances only by `sleep`."""

    def __init__(self):
        self.now = 5_000_000_000

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


def test_every_second_counts_once():
    clock = Clock()
    goodput = Goodput(clock)
    clock.sleep(1)  # other
    with goodput.measure("compile"):
        clock.sleep(30)
    with goodput.measure("step"):
        clock.sleep(60)
        with goodput.measure("data stall"):  # not counted for the step
            clock.sleep(7)
        clock.sleep(2)
    seconds = goodput.seconds()
    assert seconds == {
        **dict.fromkeys(CAUSES, 0.0),
        "other": 1,
        "compile": 30,
        "step": 62,
        "data stall": 7,
    }
    assert wall(goodput) == (clock.now - 5_000_000_000) / 1e9 == 100
    assert fraction_productive(seconds) == 0.62


def test_time_in_an_open_context_counts():
    clock = Clock()
    goodput = Goodput(clock)
    with goodput.measure("checkpoint"):
        clock.sleep(4)
        assert goodput.seconds()["checkpoint"] == 4 == wall(goodput)


def test_exception_ends_the_context():
    clock = Clock()
    goodput = Goodput(clock)
    with pytest.raises(RuntimeError), goodput.measure("evaluation"):
        clock.sleep(3)
        raise RuntimeError
    clock.sleep(5)
    assert goodput.seconds()["evaluation"] == 3 and goodput.seconds()["other"] == 5


def test_clock_jump_adds_no_time_and_is_counted():
    clock = Clock()
    goodput = Goodput(clock)
    with goodput.measure("step"):
        clock.sleep(10)
        assert wall(goodput) == 10
        clock.sleep(-3600)
        assert wall(goodput) == 10
        clock.sleep(5)
    assert goodput.seconds()["step"] == 15 == wall(goodput)
    assert goodput.clock_jumps == 1
    goodput.add("restart", -2.0)
    assert wall(goodput) == 15 and goodput.clock_jumps == 2


def test_add_time_from_before_this_process():
    goodput = Goodput(Clock())
    goodput.add("restart", 12.5)
    goodput.add("step", 50)
    assert wall(goodput) == 62.5 and fraction_productive(goodput.seconds()) == 0.8


@pytest.mark.parametrize(("gap", "restart", "jumps"), [(30.0, 30, 0), (5.0, 8, 0), (-99.0, 8, 1)])
def test_resume_counts_the_start_as_restart(gap, restart, jumps):
    """The gap since the last line of the previous attempt includes the 8 s of this process. If the
    clock was set back, only these 8 s count.
    """
    clock = Clock()
    goodput = Goodput(clock)
    clock.sleep(2)
    with goodput.measure("checkpoint"):
        clock.sleep(6)
    goodput.resume({"step": 50.0, "compile": 7.0}, gap)
    clock.sleep(1)
    assert goodput.seconds() == {
        **dict.fromkeys(CAUSES, 0.0),
        "step": 50,
        "compile": 7,
        "restart": restart,
        "other": 1,
    }
    assert goodput.clock_jumps == jumps


def test_unknown_causes_raise_errors_and_empty_run_has_no_goodput():
    goodput = Goodput(Clock())
    with (
        pytest.raises(ValueError, match=r"'coffee'.*step, repeated steps, compile"),
        goodput.measure("coffee"),
    ):
        pass
    with pytest.raises(ValueError, match="'coffee'"):
        goodput.add("coffee", 1)
    assert fraction_productive(goodput.seconds()) == 0.0 and wall(goodput) == 0.0
