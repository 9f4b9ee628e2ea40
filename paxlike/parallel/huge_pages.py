"""Memory in pages of 2 MiB for programs that compute on the CPU.

A step's temporary memory is taken anew each time: in pages of 4 KiB that is a hundred thousand faults a step, and products of large
matrices wait for the translation of addresses. glibc asks the kernel for huge pages where its tunable says so, which it reads once, as
a program starts (docs/performance.md has the effect).
"""

import os
import sys
from pathlib import Path

from paxlike.parallel.compilers import accelerators_here

TUNABLE = "glibc.malloc.hugetlb"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask_for_huge_pages() -> None:
    """Starts this program again with the tunable set, where the kernel gives huge pages to those that ask; returns where there is nothing
    to gain: an accelerator computes, the tunable has a value already, or the kernel gives them to all or to none.

    Call it before anything is imported that takes long, or that cannot be done twice.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not accelerators_here()
    if not on_cpu or TUNABLE in tunables or "[madvise]" not in _policy() or not sys.executable:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _policy() -> str:
    try:
        return KERNEL.read_text()
    except OSError:
        return ""
