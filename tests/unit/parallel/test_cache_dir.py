"""The cache directory follows PAXLIKE_CACHE, then XDG_CACHE_HOME."""

from pathlib import Path

import pytest

from paxlike.parallel.cache_dir import cache_root


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({}, "/home/ada/.cache/paxlike"),
        ({"XDG_CACHE_HOME": ""}, "/home/ada/.cache/paxlike"),
        ({"XDG_CACHE_HOME": "/scratch"}, "/scratch/paxlike"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/ada/.cache/paxlike"),
        ({"XDG_CACHE_HOME": "/scratch", "PAXLIKE_CACHE": "/ours"}, "/ours"),
    ],
)
def test_cache_root(variables, folder, monkeypatch):
    for name in ("PAXLIKE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ada")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(folder)
