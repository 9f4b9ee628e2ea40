"""The configs that come with paxlike, by file and by name."""

from pathlib import Path

import pytest

from paxlike.config import UserError, from_json, load, to_json
from paxlike.config.file import shipped

FILES = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_file_loads_and_round_trips_through_json(path):
    made = load(path)
    assert from_json(to_json(made)) == made


def test_each_has_a_unique_name():
    """Default run directories are named after it; two configs must not share one."""
    assert FILES and len({load(path).name for path in FILES}) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_bare_name_is_a_shipped_config(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(path.stem) == load(path)
    assert shipped()[path.stem] == path


def test_a_file_takes_precedence_over_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text(
        "from paxlike.config import *\nconfig = lambda: Config(name='mine')"
    )
    assert load("tiny").name == "mine"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("palm_8", r"there is no config 'palm_8'. Did you mean palm_8b. Give .*tiny."),
        ("zzz", r"there is no config 'zzz'. Give a Python file, or one of adapt_lora, .*, tiny."),
        ("configs/tiny.py", "no config file configs/tiny.py. paxlike comes with .* name: tiny."),
        ("tiny.py", "no config file tiny.py. paxlike comes with a config of that name: tiny."),
    ],
)
def test_unknown_names_list_the_shipped_configs(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        load(name)
