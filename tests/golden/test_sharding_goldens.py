"""The sharding tables are as they were: a change of the rules, of a config or of the model's parameters shows here, line by line."""

import pytest

from tools import update_goldens as goldens


@pytest.mark.parametrize("name", goldens.TABLES)
def test_sharding_table(name):
    found, golden = goldens.render(name).splitlines(), goldens.path(name).read_text().splitlines()
    assert found == golden, "if that is meant: python -m tools.update_goldens, and read the diff"


def test_every_config_and_no_other_has_a_table():
    assert set(goldens.TABLES) == {file.stem for file in (goldens.ROOT / "configs").glob("*.py")}
    assert set(goldens.GOLDENS.glob("*.txt")) == {goldens.path(name) for name in goldens.TABLES}
