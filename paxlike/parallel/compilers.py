"""Compilers for chips that are not here (libtpu, the CUDA plugin): they shall neither be asked for devices nor fill the terminal.

Nothing is imported from JAX at the head of this file, because importing JAX loads the CUDA plugin's libraries, and they speak.
"""

import contextlib
import ctypes
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

PLUGINS = {"jax_cuda12_plugin": "jax_plugins.xla_cuda12", "jax_cuda13_plugin": "jax_plugins.xla_cuda13"}
"""Package with the CUDA plugin's extension -> package with the compiler."""


def chip_here() -> bool:
    """Whether this machine has an accelerator, as its device files tell; nobody has to be asked who would take it."""
    return any(any(Path("/dev").glob(kind)) for kind in ("accel*", "vfio/*", "nvidia*", "dxg", "kfd"))


def only_compilers() -> bool:
    """Whether libtpu or the CUDA plugin is installed to compile for chips that are not here: JAX would look for some, and complain at
    length."""
    return not chip_here() and any(importlib.util.find_spec(name) for name in ("libtpu", *PLUGINS))


def import_jax() -> None:
    """Imports JAX, and keeps off the terminal that the CUDA plugin finds no driver on a machine without a GPU.

    Each of its libraries says so in two lines when it is loaded, whatever JAX_PLATFORMS is and before any level of logging counts. Only
    these lines are left out, and only where there is no GPU: beside one, a driver that is not found is a fault that must be seen.
    """
    with _without(_of_the_stub) if only_compilers() else contextlib.nullcontext():
        importlib.import_module("jax")
        for extension, compiler in PLUGINS.items():
            # JAX would load these when it is first asked for devices, wherever that is; it finds them loaded then. What is wrong with
            # a plugin it says itself.
            with contextlib.suppress(ImportError, OSError):
                importlib.import_module(f"{extension}.cuda_plugin_extension")
                for folder in importlib.import_module(compiler).__path__:
                    for library in Path(folder).glob("*.so"):
                        ctypes.CDLL(str(library))


def silent() -> contextlib.AbstractContextManager[None]:
    """Keeps off the terminal what compilers say while they are loaded: that there is no chip here, at length, past Python."""
    return _without(lambda line: True)


def _of_the_stub(line: bytes) -> bool:
    return b"cudart_stub.cc" in line or b"log messages before absl::InitializeLog()" in line


@contextlib.contextmanager
def _without(unwanted: Callable[[bytes], bool]) -> Iterator[None]:
    """Standard error without the lines that are unwanted, those of C++ too; the others come when the block ends."""
    if sys.stderr is None:
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            for line in said:
                if not unwanted(line):
                    os.write(2, line)
