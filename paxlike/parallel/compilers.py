"""Handles compilers for absent chips (libtpu, the CUDA plugin): JAX must not look for devices
through them, and their warnings must not fill the terminal.

This module does not import JAX at the top, because importing JAX loads the CUDA plugin's libraries,
which print warnings.
"""

import contextlib
import ctypes
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

PLUGINS = {
    "jax_cuda12_plugin": "jax_plugins.xla_cuda12",
    "jax_cuda13_plugin": "jax_plugins.xla_cuda13",
}
"""Package of the CUDA plugin's extension -> package of its compiler."""


def chip_here() -> bool:
    """Whether this machine has an accelerator, by its device files, so that no driver is loaded."""
    return any(
        any(Path("/dev").glob(kind)) for kind in ("accel*", "vfio/*", "nvidia*", "dxg", "kfd")
    )


def only_compilers() -> bool:
    """Whether libtpu or the CUDA plugin is installed on a machine without an accelerator.

    JAX would look for devices and print long warnings.
    """
    return not chip_here() and any(importlib.util.find_spec(name) for name in ("libtpu", *PLUGINS))


def import_jax() -> None:
    """Imports JAX without the CUDA plugin's warning that it found no driver.

    Each of the plugin's libraries prints two lines when it is loaded, regardless of JAX_PLATFORMS
    and of the logging level. Only these lines are removed, and only on machines without a GPU: on a
    machine with one, a missing driver is an error that must be visible.
    """
    with _without(_is_stub_warning) if only_compilers() else contextlib.nullcontext():
        importlib.import_module("jax")
        for extension, compiler in PLUGINS.items():
            # JAX would load these on its first use of a device. It then finds them loaded, and
            # reports problems of a plugin itself.
            with contextlib.suppress(ImportError, OSError):
                importlib.import_module(f"{extension}.cuda_plugin_extension")
                for folder in importlib.import_module(compiler).__path__:
                    for library in Path(folder).glob("*.so"):
                        ctypes.CDLL(str(library))


def silent() -> contextlib.AbstractContextManager[None]:
    """Suppresses the output of compilers while they load, including output of C++ code."""
    return _without(lambda line: True)


def _is_stub_warning(line: bytes) -> bool:
    return b"cudart_stub.cc" in line or b"log messages before absl::InitializeLog()" in line


@contextlib.contextmanager
def _without(unwanted: Callable[[bytes], bool]) -> Iterator[None]:
    """Removes unwanted lines from standard error, including those of C++ code. The other lines are
    written when the block ends.
    """
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
