"""The package keeps its layers, and the check finds violations of every kind."""

from pathlib import Path

import pytest

from tools import check_layers


def test_the_package_has_no_violations():
    root = Path(__file__).resolve().parents[2]
    assert check_layers.check(root) == []


# (file -> source), and a part of the expected message.
VIOLATIONS = {
    "upwards": (
        {"parallel/mesh.py": "from paxlike.nn import norm\n"},
        "from a higher layer (parallel -> nn)",
    ),
    "upwards, relative": (
        {"nn/norm.py": "from ..models import decoder\n"},
        "paxlike.models.decoder from a higher layer",
    ),
    "config imports nothing": (
        {"config/validation.py": "import paxlike.parallel.axes\n"},
        "higher layer (config -> parallel)",
    ),
    "architecture below nn": (
        {"architecture/attention.py": "from paxlike.nn import norm\n"},
        "higher layer (architecture -> nn)",
    ),
    "api from below": (
        {"nn/norm.py": "from paxlike import open_run\n"},
        "imports paxlike.open_run from a higher layer",
    ),
    "api from above": (
        {"api/run.py": "from paxlike.commands import run\n"},
        "higher layer (api -> commands)",
    ),
    "no layer": ({"extra/box.py": ""}, "'extra' has no layer"),
    "late import": (
        {"training/loop.py": "def f():\n    import json\n"},
        "loop.py:2: imports json inside a function",
    ),
    "late import of JAX": (
        {"training/loop.py": "def f():\n    import jax\n"},
        "imports jax inside a function",
    ),
    "flax": (
        {"training/state.py": "from flax import nnx\n"},
        "uses flax.nnx; flax may be used in interop/t5x.py, interop/t5x_module.py only",
    ),
    "flax in nn": ({"nn/weight.py": "from flax.nnx import Param\n"}, "flax may be used in interop"),
    "flax in models": (
        {"models/decoder.py": "import flax.linen as nn\n"},
        "flax may be used in interop",
    ),
    "flax in interop": ({"interop/hf.py": "import flax\n"}, "flax may be used in interop/t5x.py"),
    "optax": ({"training/step.py": "import optax\n"}, "optax may be used in optim/ only"),
    "orbax": (
        {"training/state.py": "import orbax.checkpoint as ocp\n"},
        "orbax may be used in training/checkpoint.py only",
    ),
    "grain": ({"data/corpus.py": "import grain\n"}, "grain may be used in"),
    "tyro": ({"planning/compile.py": "import tyro\n"}, "tyro may be used in commands/ only"),
    "tensorflow": (
        {"interop/t5x.py": "def f():\n    import tensorflow as tf\n"},
        "tensorflow may be used in",
    ),
    "tensorstore": (
        {"training/loop.py": "import tensorstore\n"},
        "tensorstore may be used in training/checkpoint_reader.py",
    ),
    "interop in training": (
        {"training/loop.py": "from paxlike.interop import hf\n"},
        "(training -> interop)",
    ),
    "seqio": ({"data/corpus.py": "from seqio import vocabularies\n"}, "seqio may be used in"),
    "import by name": (
        {"nn/norm.py": "import importlib\nimportlib.import_module('paxlike.train')\n"},
        "norm.py:2: uses importlib.import_module",
    ),
    "import by name, imported": (
        {"nn/norm.py": "from importlib import import_module\n"},
        "uses importlib.import_module",
    ),
    "distributed": (
        {"training/loop.py": "import jax\njax.distributed.initialize()\n"},
        "loop.py:2: uses jax.distributed",
    ),
    "distributed, imported": (
        {"training/loop.py": "from jax import distributed\n"},
        "uses jax.distributed",
    ),
    "distributed, launch": (
        {"../launch/local.py": "import jax\njax.distributed.initialize()\n"},
        "launch/local.py:2",
    ),
    "jax in config": (
        {"config/validation.py": "import jax\n"},
        "paxlike.config.validation: must not import JAX",
    ),
    "jax in accounting": (
        {"accounting/flops.py": "from jax import numpy\n"},
        "accounting.flops: must not import JAX",
    ),
    "jax in architecture": (
        {"architecture/stack.py": "import jax.numpy as jnp\n"},
        "architecture.stack: must not import JAX",
    ),
    "jax below architecture": (
        {
            "architecture/stack.py": "from paxlike.parallel import mesh\n",
            "parallel/mesh.py": "import jax\n",
        },
        "architecture.stack: must not import JAX, but paxlike.parallel.mesh imports it",
    ),
    "jax below accounting": (
        {
            "accounting/flops.py": "from paxlike.parallel.axes import ALPHABET\n",
            "parallel/axes.py": "",
            "parallel/__init__.py": "import jax\n",
        },
        "paxlike.accounting.flops: must not import JAX, but paxlike.parallel imports it",
    ),
    "types in another module": (
        {"config/model.py": "if TYPE_CHECKING:\n    from paxlike.training import loop\n"},
        "higher layer (config -> training)",
    ),
    "behind another condition": (
        {"__init__.py": "if not TYPE_CHECKING:\n    from paxlike.training import loop\n"},
        "higher layer ( -> training)",
    ),
    "else of types": (
        {"__init__.py": "if TYPE_CHECKING:\n    pass\nelse:\n    import paxlike.training.loop\n"},
        "higher layer ( -> training)",
    ),
    "cycle": (
        {"nn/a.py": "from paxlike.nn import b\n", "nn/b.py": "from paxlike.nn.a import x\n"},
        "paxlike.nn.a: is in an import cycle of modules",
    ),
    "cycle of packages": (
        {
            "training/loop.py": "import paxlike.infer.generate\n",
            "training/state.py": "",
            "infer/generate.py": "import paxlike.training.state\n",
        },
        "infer: is in an import cycle of packages",
    ),
    "pickle": ({"training/checkpoint.py": "import pickle\n"}, "imports pickle"),
    "pickle, part": ({"training/checkpoint.py": "from pickle import loads\n"}, "imports pickle"),
    "numpy pickle": ({"data/packing.py": "np.load(p, allow_pickle=True)\n"}, "allow_pickle=True"),
    "eval": ({"training/loop.py": "x = eval('1')\n"}, "calls eval"),
    "exec": ({"training/loop.py": "exec(text)\n"}, "calls exec"),
    "shell": ({"../launch/tpu_vm.py": "subprocess.run(line, shell=True)\n"}, "launch/tpu_vm.py:1"),
    "shell in a variable": (
        {"../launch/tpu_vm.py": "subprocess.run(line, shell=yes)\n"},
        "shell=yes",
    ),
    "system": ({"../launch/gke.py": "os.system('ls')\n"}, "calls os.system"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_a_violation_is_reported(case, tmp_path):
    files, message = VIOLATIONS[case]
    found = check_layers.check(package(tmp_path, files))
    assert any(message in line for line in found), found


def test_what_is_allowed_is_not_reported(tmp_path):
    files = {
        "__init__.py": "if TYPE_CHECKING:\n    from paxlike.api.run import Run\n"
        "def __getattr__(name):\n    return importlib.import_module(NAMES[name])\n",
        "api/run.py": "import jax\nimport paxlike.training.loop\nfrom paxlike import __version__\n",
        "api/planning.py": "def f():\n    import paxlike.planning.compile\n",
        "planning/compile.py": "import jax\n",
        "commands/run.py": "import tyro\ndef f():\n    import jax\n"
        "    import paxlike.training.loop\n",
        "training/loop.py": "from paxlike.optim.optimizer import make\nfrom . import state\n"
        "def f():\n    import wandb\n",
        "training/state.py": "import jax\n",
        "optim/optimizer.py": "import optax\nfrom paxlike.optim import schedules\n",
        "optim/schedules.py": "import optax\n",
        "infer/generate.py": "import paxlike.training.state\nmodel.eval()\n",
        "interop/t5x.py": "from flax import serialization\nimport tensorstore\n",
        "interop/t5x_module.py": "from flax import linen as nn\nclass A(nn.Module): pass\n",
        "architecture/stack.py": "from paxlike.parallel import axes\n",
        "parallel/runtime.py": "import jax\njax.distributed.initialize()\n",
        "parallel/axes.py": "from paxlike.config import Config\n",
        "accounting/flops.py": "from paxlike.parallel.axes import sizes\n"
        "from paxlike.architecture import stack\n",
        "data/seqio_source.py": "def f():\n    import tensorflow\n    import seqio\n",
        "data/packing.py": "np.load(p, allow_pickle=False)\n",
        "../launch/local.py": "subprocess.run(['ls'], shell=False)\n",
    }
    assert check_layers.check(package(tmp_path, files)) == []


def package(root: Path, files: dict[str, str]) -> Path:
    """A source tree of empty packages and the given files, whose names are relative to paxlike/."""
    for name in [
        "__init__.py",
        *(f"{layer}/__init__.py" for layer in check_layers.LAYER if layer),
    ]:
        if name.split("/")[0] not in ("cli", "__main__"):
            write(root / "paxlike" / name, "")
    for name, source in files.items():
        write((root / "paxlike" / name).resolve(), source)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
