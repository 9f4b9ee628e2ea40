"""The accounting fields of metrics.jsonl, for `paxlike report`: FLOPs, peaks, memory, energy, time.

MFU uses the palm convention, or the products of a step if a part of the model is frozen. HFU counts
the matrix products that the program runs, including recomputation (`executed_flops`, which tests
compare with the compiled program). Flash kernels skip about half of each attention matrix, but are
counted in full. The start event states both counts, so that a report does not have to guess.
"""

import jax

from paxlike.accounting.adapted_flops import by_part, executed, training_flops
from paxlike.accounting.flops import Count, hardware_flops
from paxlike.accounting.memory import memory_estimate
from paxlike.accounting.throughput import Goodput, reported_counts, utilization
from paxlike.config import Config
from paxlike.nn.numerics import Numerics
from paxlike.training.peak_flops import chip_and_source
from paxlike.training.power import EnergyMeter, energy_source


class RunAccounting:
    """The accounting of one attempt. `close` ends the energy meter's thread."""

    def __init__(self, config: Config, numerics: Numerics):
        self.config, self.numerics = config, numerics
        self.goodput = Goodput()
        self.chip, self.peak_source = chip_and_source(numerics.compute)
        self.chips = self.chip.chips(len(jax.devices())) if self.chip else None
        self.model = training_flops(config)
        self.executed = executed(config, numerics.attention)
        source = energy_source(jax.default_backend())
        self.meter = source and EnergyMeter(source)

    def close(self) -> None:
        if self.meter:
            self.meter.close()

    def start_fields(self) -> dict:
        """Returns the fields of the start event: the inputs of every formula, and the memory plan
        that the report compares memory in use with."""
        model, T = self.config.model, self.config.data.sequence_length
        conventions = {name: _fields(count) for name, count in reported_counts(model, T).items()}
        if self.config.adapt.active:
            conventions = dict.fromkeys(conventions, _fields(self.model))
        compute, chip = self.numerics.compute, self.chip
        plan = memory_estimate(
            self.config,
            len(jax.devices()),
            compute=compute,
            kernel="reference" if self.numerics.attention in ("reference", "xla") else "flash",
        )
        return {
            "peak": chip and chip.peak(compute),
            "peak_source": self.peak_source,
            "chip": chip
            and {"name": chip.name, "title": chip.title, "source": chip.source, "dtype": compute},
            "chips": self.chips,
            "flops_per_token": {
                "model": conventions,
                "executed": _fields(self.executed),
                "hardware": _fields(hardware_flops(model, T)),
                "by_part": by_part(self.config, self.numerics.attention),
            },
            "memory_plan": {part.name: part.bytes for part in plan.parts},
            "energy_source": self.meter and self.meter.source.name,
            "energy_devices": len(jax.local_devices()),
        }

    def utilization(self, tokens_per_second: float) -> tuple[dict[str, float], str | None]:
        """Returns {"mfu", "hfu"} if the peak is known, and a warning or None."""
        if self.chip is None or self.chips is None:
            return {}, None
        inputs = (tokens_per_second, self.chips, self.chip, self.numerics.compute)
        mfu = utilization("MFU", self.model, *inputs)
        hfu = utilization("HFU", self.executed, *inputs)
        return {"mfu": mfu.fraction, "hfu": hfu.fraction}, mfu.warning or hfu.warning

    def current_fields(self) -> dict:
        """Returns wall time by cause and, if the hardware reports them, memory use and joules."""
        fields: dict = {
            "goodput": {cause: round(s, 3) for cause, s in self.goodput.seconds().items()}
        }
        if memory := device_memory():
            fields["device_memory"] = memory
        if self.meter and not self.meter.failed:
            fields["joules"] = round(self.meter.joules, 3)
        return fields


def _fields(count: Count) -> dict:
    return {"name": count.name, "formula": count.formula, "total": count.total}


def device_memory() -> dict[str, int]:
    """Returns {"in_use", "peak", "limit"} in bytes, for this process's fullest device.

    Returns {} if the devices report no memory, as on CPUs.
    """
    stats = [s for device in jax.local_devices() if (s := device.memory_stats())]
    if not stats:
        return {}
    fullest = max(stats, key=lambda s: s.get("peak_bytes_in_use", 0))
    names = {"in_use": "bytes_in_use", "peak": "peak_bytes_in_use", "limit": "bytes_limit"}
    return {name: int(fullest[key]) for name, key in names.items() if key in fullest}


def program_memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Returns the bytes that the compiler allocates for a program on one device, by kind.

    The kinds are arguments, outputs, temporaries, aliased (outputs that overwrite arguments) and
    code. The peak is arguments + outputs + temporaries - aliased. Returns {} if the compiler does
    not report them.
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
