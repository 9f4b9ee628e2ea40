"""A program is started again once, with what it had and the tunable, and not where there is nothing to gain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, pathlib, sys
from paxlike.parallel import huge_pages
huge_pages.KERNEL = pathlib.Path(sys.argv[1])
print("begun", flush=True)
huge_pages.ask_for_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[2:], sys.flags.utf8_mode)
"""


@pytest.mark.parametrize(
    ("policy", "before", "begun", "after"),
    [
        ("always [madvise] never", None, 2, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.arena_max=2", 2, "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", 1, "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", None, 1, "None"),
        ("", None, 1, "None"),
    ],
)
def test_a_program_starts_again_with_the_tunable(tmp_path, policy, before, begun, after):
    kernel = tmp_path / "enabled"
    if policy:
        kernel.write_text(policy)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | ({"GLIBC_TUNABLES": before} if before else {})
    words = [sys.executable, "-X", "utf8", "-c", PROGRAM, str(kernel), "two words", "*"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["begun"] * begun + [f"{after} two words * 1"]


def test_an_accelerator_is_left_alone(monkeypatch):
    from paxlike.parallel import huge_pages

    monkeypatch.setattr(huge_pages, "accelerators_here", lambda: True)
    monkeypatch.setattr(huge_pages, "_policy", lambda: "[madvise]")
    monkeypatch.setattr(huge_pages.os, "execv", lambda *_: pytest.fail("started again"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    huge_pages.ask_for_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ
