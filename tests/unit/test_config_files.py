"""The configs that come with the package."""

from pathlib import Path

import pytest

from paxlike.config import from_json, load, to_json

FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_loads_and_survives_json(path):
    made = load(path)
    assert from_json(to_json(made)) == made


def test_each_has_a_name_of_its_own():
    """The name is the run folder's: two configs must not go on in each other's."""
    assert FILES and len({load(path).name for path in FILES}) == len(FILES)
