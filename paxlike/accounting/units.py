"""Formats numbers with units."""

import math

GB, GiB = 10**9, 2**30

_PREFIXES = ("", "K", "M", "G", "T", "P", "E")
_SMALL = ("", "m", "µ", "n")


def si(value: float, unit: str, digits: int = 4) -> str:
    """Formats 3.278e12 as `3.278 TFLOP`, 0.0123 as `12.30 m`, and values above exa- as 2.557e+24.

    digits: number of significant digits.
    """
    if 0 < abs(value) < 0.9995:
        power = min(3, -math.floor(math.log10(abs(value) * 1.0005) / 3))
        return f"{value * 1000.0**power:#.{digits}g}".rstrip(".") + f" {_SMALL[power]}{unit}"
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    if abs(value) >= 999.5:
        return f"{value * 1000.0**power:.{digits - 1}e} {unit}"
    return f"{value:#.{digits}g}".rstrip(".") + f" {_PREFIXES[power]}{unit}"


def gib(size: float) -> str:
    """Formats bytes as `12.34 GiB`, or as MiB or KiB if small."""
    for unit, scale in (("GiB", GiB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} bytes"
