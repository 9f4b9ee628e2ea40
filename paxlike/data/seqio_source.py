"""Imports seqio and TensorFlow, on first use only, and loads modules that register seqio tasks.

No other file imports them.
"""

import difflib
import functools
import hashlib
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Any

from paxlike.config import UserError

_SHOWN = 20


@functools.cache
def libraries() -> tuple[Any, Any]:
    """(seqio, tensorflow). Raises UserError if they are not installed."""
    for name in ("seqio", "tensorflow"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"this requires {name}, which is not installed: pip install 'paxlike[seqio]'."
            )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import seqio
    import tensorflow

    logging.getLogger("absl").setLevel(
        logging.ERROR
    )  # seqio warns about shuffling each time a split is opened
    tensorflow.config.set_visible_devices([], "GPU")  # JAX uses them.
    return seqio, tensorflow


@functools.cache
def load_module(path: Path) -> None:
    """Runs the user's Python file that registers tasks, once. Raises UserError with the file and
    the problem.
    """
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"there is no Python file {path} that could register seqio tasks.")
    libraries()
    name = f"seqio_tasks_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # it is a Python file
    # TensorFlow finds the source of functions through a unique module name.
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path}: {type(error).__name__}: {error}.") from error


def registered(mixture: str) -> Any:
    """The `seqio.Task` or `seqio.Mixture` with this name. Raises UserError listing similar
    names.
    """
    seqio, _ = libraries()
    names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if mixture not in names:
        near = difflib.get_close_matches(mixture, names, n=_SHOWN, cutoff=0.3) or names[:_SHOWN]
        more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
        meant = (
            f"; registered are {', '.join(near)}{more}."
            if names
            else "; the module registers none."
        )
        raise UserError(f"no seqio Task or Mixture {mixture!r} is registered{meant}")
    return seqio.get_mixture_or_task(mixture)
