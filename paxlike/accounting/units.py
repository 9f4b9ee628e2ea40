"""Numbers as people read them."""

GB, GiB = 10**9, 2**30

_PREFIXES = ("", "K", "M", "G", "T", "P", "E")


def si(value: float, unit: str, digits: int = 4) -> str:
    """`3.278 TFLOP` for 3.278e12; above exa-, as 2.557e+24. `digits` are the significant ones."""
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value, power = value / 1000, power + 1
    if abs(value) >= 999.5:
        return f"{value * 1000.0**power:.{digits - 1}e} {unit}"
    return f"{value:#.{digits}g}".rstrip(".") + f" {_PREFIXES[power]}{unit}"


def gib(size: float) -> str:
    """Bytes as `12.34 GiB`, small ones as MiB or KiB."""
    for unit, scale in (("GiB", GiB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(size) >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size:.0f} bytes"
