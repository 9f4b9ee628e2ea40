"""The door to seqio: the only file that imports it and TensorFlow, and only when it is asked for; and what a user's module registers."""

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
    """(seqio, tensorflow). Raises UserError where they are not installed."""
    for name in ("seqio", "tensorflow"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"this needs {name}, which is not installed: pip install 'paxlike[seqio]'.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import seqio
    import tensorflow

    logging.getLogger("absl").setLevel(logging.ERROR)  # seqio's advice on shuffling, each time a split is opened
    tensorflow.config.set_visible_devices([], "GPU")  # They are JAX's.
    return seqio, tensorflow


@functools.cache
def load_module(path: Path) -> None:
    """Runs the user's Python file that registers tasks, once. Raises UserError naming the file and what is wrong."""
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"there is no Python file {path} that could register seqio tasks.")
    libraries()
    name = f"seqio_tasks_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    # Under a name of its own: TensorFlow looks for the source of functions there.
    sys.modules[name] = module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{path}: {type(error).__name__}: {error}.") from error


def registered(mixture: str) -> Any:
    """The `seqio.Task` or `seqio.Mixture` of that name. Raises UserError with those that there are."""
    seqio, _ = libraries()
    names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if mixture not in names:
        near = difflib.get_close_matches(mixture, names, n=_SHOWN, cutoff=0.3) or names[:_SHOWN]
        more = f" and {len(names) - len(near)} more" if len(names) > len(near) else ""
        meant = f"; there are {', '.join(near)}{more}." if names else "; the module registers none."
        raise UserError(f"no seqio Task or Mixture {mixture!r} is registered{meant}")
    return seqio.get_mixture_or_task(mixture)
