"""Golden sharding tables: show every change of the rules, the configs or the parameters."""

import pytest

from tools import update_goldens as goldens


@pytest.mark.parametrize("name", goldens.TABLES)
def test_sharding_table(name):
    found, golden = goldens.render(name).splitlines(), goldens.path(name).read_text().splitlines()
    assert found == golden, "if intended, run python -m tools.update_goldens and read the diff"


def test_exactly_the_configs_have_a_table():
    assert set(goldens.TABLES) == {file.stem for file in (goldens.ROOT / "configs").glob("*.py")}
    assert set(goldens.GOLDENS.glob("*.txt")) == {goldens.path(name) for name in goldens.TABLES}
