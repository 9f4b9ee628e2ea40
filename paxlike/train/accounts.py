"""What a run's lines say beside its losses, for `paxlike report`: what a percentage is divided by, memory, energy, wall time.

MFU is by the palm convention. HFU is of the matrix products that this program runs, with what it computes again (`executed_flops`, held
against the compiled program by tests); flash kernels skip about half of attention's squares and are counted in full all the same. Both
are stated once, in the start event, so that a report guesses nothing.
"""

import jax

from paxlike.accounting.flops import Count, executed_flops, flops_by_part, hardware_flops, model_flops
from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.throughput import Goodput, reported_counts, utilization
from paxlike.config import Config
from paxlike.nn.weight import Numerics
from paxlike.train.peak import chip_or_note
from paxlike.train.power import EnergyMeter, source_here


class Accounts:
    """The accounts of one attempt. `close` ends the energy meter's thread."""

    def __init__(self, config: Config, numerics: Numerics):
        model, T = config.model, config.data.sequence_length
        self.config, self.numerics = config, numerics
        self.goodput = Goodput()
        self.chip, self.peak = chip_or_note(numerics.compute)
        self.chips = self.chip and self.chip.chips(len(jax.devices()))
        self.model = model_flops(model, T)
        self.executed = executed_flops(model, T, numerics.attention)
        source = source_here(jax.default_backend())
        self.meter = source and EnergyMeter(source)

    def close(self) -> None:
        if self.meter:
            self.meter.close()

    def started(self) -> dict:
        """For the start event: the inputs of every formula, and the plan that memory in use is compared with."""
        model, T = self.config.model, self.config.data.sequence_length
        conventions = {name: _stated(count) for name, count in reported_counts(model, T).items()}
        hardware = hardware_flops(model, T)
        plan = memory_estimate(
            self.config, len(jax.devices()), compute=self.numerics.compute,
            kernel="reference" if self.numerics.attention in ("reference", "xla") else "flash",
        )  # fmt: skip
        return {
            "peak": self.chip and self.chip.peak(self.numerics.compute), "peak_source": self.peak,
            "chip": self.chip and {
                "name": self.chip.name, "title": self.chip.title, "source": self.chip.source, "dtype": self.numerics.compute,
            },
            "chips": self.chips,
            "flops_per_token": {
                "model": conventions, "executed": _stated(self.executed), "hardware": _stated(hardware),
                "by_part": flops_by_part(model, T, self.numerics.attention),
            },
            "memory_plan": {part.name: part.bytes for part in plan.parts},
            "energy_source": self.meter and self.meter.source.name,
            "energy_devices": len(jax.local_devices()),
        }  # fmt: skip

    def utilization(self, tokens_per_second: float) -> tuple[dict[str, float], str | None]:
        """{"mfu", "hfu"} where the peak is known, and what to warn of."""
        if not self.chip:
            return {}, None
        of = (tokens_per_second, self.chips, self.chip, self.numerics.compute)
        used, hardware = utilization("MFU", self.model, *of), utilization("HFU", self.executed, *of)
        return {"mfu": used.fraction, "hfu": hardware.fraction}, used.warning or hardware.warning

    def so_far(self) -> dict:
        """What a line adds now and then: wall time by cause, memory in use where the device tells, joules where the machine does."""
        told: dict = {"goodput": {cause: round(s, 3) for cause, s in self.goodput.seconds().items()}}
        if memory := device_memory():
            told["device_memory"] = memory
        if self.meter and not self.meter.failed:
            told["joules"] = round(self.meter.joules, 3)
        return told


def _stated(count: Count) -> dict:
    return {"name": count.name, "formula": count.formula, "total": count.total}


def device_memory() -> dict[str, int]:
    """{"in_use", "peak", "limit"}: bytes of this process's fullest device. {} where devices do not tell, as CPUs."""
    stats = [s for device in jax.local_devices() if (s := device.memory_stats())]
    if not stats:
        return {}
    fullest = max(stats, key=lambda s: s.get("peak_bytes_in_use", 0))
    names = {"in_use": "bytes_in_use", "peak": "peak_bytes_in_use", "limit": "bytes_limit"}
    return {name: int(fullest[key]) for name, key in names.items() if key in fullest}


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes on one device that the compiler laid out for a program; {} where it does not say.

    arguments, outputs, temporaries, aliased (outputs written over arguments) and code; the peak is of the first three less aliased.
    """
    found = compiled.memory_analysis()
    if found is None:
        return {}
    return {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
