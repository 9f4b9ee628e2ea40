import pytest

from paxlike.accounting.flops import hardware_flops, model_flops
from paxlike.accounting.hardware import chip_named
from paxlike.accounting.throughput import CAUSES, Goodput, fraction_productive, utilization
from paxlike.config import ModelConfig, UserError

MODEL = ModelConfig(
    layers=118, heads=48, kv_heads=1, head_dim=256, d_model=18432, d_ff=73728, vocab_size=256_000, remat="palm"
)
GIVEN = {"tokens_per_second": 238.3e3, "chips": 6144, "chip": chip_named("v4")}


def mfu(**given):
    return utilization("MFU", model_flops(MODEL, 2048), **given)


def test_the_formula_is_printed_with_its_numbers_and_gives_the_result():
    told = mfu(**GIVEN)
    assert told.formula == (
        "MFU 46.2% = 238,300 tokens/s x 3.278 TFLOP/token (palm: 6N + 12LHQT) / (6,144 chips x 275 TFLOP/s)"
    )
    assert 238_300 * 3.278 / (6144 * 275) == pytest.approx(told.fraction, rel=1e-4)
    assert "Google Cloud documentation, TPU v4" in told.peak
    assert utilization("HFU", hardware_flops(MODEL, 2048), **GIVEN).formula.startswith("HFU 57.8%")


def test_two_devices_of_a_v7x_are_one_chip():
    chip = chip_named("v7x")
    whole = mfu(tokens_per_second=1e4, chips=chip.chips(64), chip=chip)
    wrong = mfu(tokens_per_second=1e4, chips=64, chip=chip)
    assert whole.fraction == 2 * wrong.fraction


@pytest.mark.parametrize(
    ("target", "words"), [(0.5, None), (0.84, None), (0.9, "hardly possible"), (1.52, "cannot be")]
)
def test_figures_near_and_above_the_peak_are_doubted(target, words):
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


@pytest.mark.parametrize("bad", [{"tokens_per_second": 0}, {"chips": -1}, {"tokens_per_second": float("nan")}])
def test_rates_that_mean_nothing_are_refused(bad):
    with pytest.raises(UserError, match="greater than 0"):
        mfu(**{**GIVEN, **bad})


def test_a_dtype_without_a_peak_is_refused_at_once():
    with pytest.raises(UserError, match="no peak for float8"):
        utilization("MFU", model_flops(MODEL, 2048), 1e5, 16, chip_named("v4"), "float8")


def wall(goodput):
    return sum(goodput.seconds().values())


class Clock:
    """Nanoseconds that pass only when told to."""

    def __init__(self):
        self.now = 5_000_000_000

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)


def test_every_second_is_booked_once():
    clock = Clock()
    goodput = Goodput(clock)
    clock.sleep(1)  # nobody books this
    with goodput.book("compile"):
        clock.sleep(30)
    with goodput.book("step"):
        clock.sleep(60)
        with goodput.book("data stall"):  # inside a step, but not the step's
            clock.sleep(7)
        clock.sleep(2)
    seconds = goodput.seconds()
    assert seconds == {**dict.fromkeys(CAUSES, 0.0), "other": 1, "compile": 30, "step": 62, "data stall": 7}
    assert wall(goodput) == (clock.now - 5_000_000_000) / 1e9 == 100
    assert fraction_productive(seconds) == 0.62


def test_time_inside_an_open_booking_is_already_seen():
    clock = Clock()
    goodput = Goodput(clock)
    with goodput.book("checkpoint"):
        clock.sleep(4)
        assert goodput.seconds()["checkpoint"] == 4 == wall(goodput)


def test_an_error_inside_closes_the_booking():
    clock = Clock()
    goodput = Goodput(clock)
    with pytest.raises(RuntimeError), goodput.book("evaluation"):
        clock.sleep(3)
        raise RuntimeError
    clock.sleep(5)
    assert goodput.seconds()["evaluation"] == 3 and goodput.seconds()["other"] == 5


def test_a_clock_that_goes_backwards_books_nothing_and_is_noted():
    clock = Clock()
    goodput = Goodput(clock)
    with goodput.book("step"):
        clock.sleep(10)
        assert wall(goodput) == 10
        clock.sleep(-3600)
        assert wall(goodput) == 10
        clock.sleep(5)
    assert goodput.seconds()["step"] == 15 == wall(goodput)
    assert goodput.clock_jumps == 1
    goodput.add("restart", -2.0)
    assert wall(goodput) == 15 and goodput.clock_jumps == 2


def test_time_before_this_process_is_added():
    goodput = Goodput(Clock())
    goodput.add("restart", 12.5)
    goodput.add("step", 50)
    assert wall(goodput) == 62.5 and fraction_productive(goodput.seconds()) == 0.8


@pytest.mark.parametrize(("gap", "restart", "jumps"), [(30.0, 30, 0), (5.0, 8, 0), (-99.0, 8, 1)])
def test_an_attempt_takes_over_the_bookings_and_its_own_start_is_a_restart(gap, restart, jumps):
    """8 s have passed in this process, which the gap since the last word of the one before holds; a clock set back holds nothing."""
    clock = Clock()
    goodput = Goodput(clock)
    clock.sleep(2)
    with goodput.book("checkpoint"):
        clock.sleep(6)
    goodput.resume({"step": 50.0, "compile": 7.0}, gap)
    clock.sleep(1)
    assert goodput.seconds() == {**dict.fromkeys(CAUSES, 0.0), "step": 50, "compile": 7, "restart": restart, "other": 1}
    assert goodput.clock_jumps == jumps


def test_unknown_causes_are_refused_and_an_empty_run_has_no_goodput():
    goodput = Goodput(Clock())
    with pytest.raises(ValueError, match=r"'coffee'.*step, repeated steps, compile"), goodput.book("coffee"):
        pass
    with pytest.raises(ValueError, match="'coffee'"):
        goodput.add("coffee", 1)
    assert fraction_productive(goodput.seconds()) == 0.0 and wall(goodput) == 0.0
