"""The result of a conversion."""

from pathlib import Path
from typing import NamedTuple


class Converted(NamedTuple):
    """What was written, for the user."""

    folder: Path
    parameters: int
    checked: str
    """The end of a sentence: `logits differ by at most …`."""
    notes: list[str]
