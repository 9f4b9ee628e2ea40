"""`python -m paxlike` is `paxlike`."""

from paxlike.cli import console

console()
