"""The floors of the house hold, and the check notices where they would not."""

from pathlib import Path

import pytest

from tools import check_layers


def test_the_house_stands():
    root = Path(__file__).resolve().parents[2]
    assert check_layers.check(root) == []


# (file -> source), and a part of the message that must come.
OFFENSES = {
    "upwards": ({"parallel/mesh.py": "from paxlike.nn import norm\n"}, "from a floor above (parallel -> nn)"),
    "upwards, relative": ({"nn/norm.py": "from ..models import palm\n"}, "paxlike.models.palm from a floor above"),
    "config knows nobody": ({"config/check.py": "import paxlike.parallel.axes\n"}, "floor above (config -> parallel)"),
    "no floor": ({"attic/box.py": ""}, "'attic' is on no floor"),
    "late import": ({"train/loop.py": "def f():\n    import json\n"}, "loop.py:2: imports json inside a function"),
    "late import, not cli": ({"train/loop.py": "def f():\n    import jax\n"}, "imports jax inside a function"),
    "flax": ({"train/state.py": "from flax import nnx\n"}, "the door of flax is nn/ or models/ or interop"),
    "optax": ({"train/step.py": "import optax\n"}, "the door of optax is optim/"),
    "orbax": ({"train/state.py": "import orbax.checkpoint as ocp\n"}, "the door of orbax is train/checkpoint.py"),
    "grain": ({"data/corpus.py": "import grain\n"}, "the door of grain"),
    "tyro": ({"plan/compile.py": "import tyro\n"}, "the door of tyro is verbs/"),
    "tensorflow": ({"interop/t5x.py": "def f():\n    import tensorflow as tf\n"}, "the door of tensorflow"),
    "tensorstore": ({"train/loop.py": "import tensorstore\n"}, "the door of tensorstore is train/stored.py"),
    "training knows no other library": ({"train/loop.py": "from paxlike.interop import hf\n"}, "(train -> interop)"),
    "seqio": ({"data/corpus.py": "from seqio import vocabularies\n"}, "the door of seqio"),
    "distributed": ({"train/loop.py": "import jax\njax.distributed.initialize()\n"}, "loop.py:2: uses jax.distributed"),
    "distributed, imported": ({"train/loop.py": "from jax import distributed\n"}, "uses jax.distributed"),
    "distributed, launch": ({"../launch/local.py": "import jax\njax.distributed.initialize()\n"}, "launch/local.py:2"),
    "jax in config": ({"config/check.py": "import jax\n"}, "paxlike.config.check: must not need JAX"),
    "jax in accounting": ({"accounting/flops.py": "from jax import numpy\n"}, "accounting.flops: must not need JAX"),
    "jax below accounting": (
        {
            "accounting/flops.py": "from paxlike.parallel.axes import ALPHABET\n",
            "parallel/axes.py": "",
            "parallel/__init__.py": "import jax\n",
        },
        "paxlike.accounting.flops: must not need JAX, but paxlike.parallel imports it",
    ),
    "nnx transform": ({"models/palm.py": "from flax import nnx\nf = nnx.jit(g)\n"}, "palm.py:2: uses nnx.jit"),
    "nnx optimizer": ({"nn/weight.py": "from flax.nnx import Optimizer\n"}, "uses flax.nnx.Optimizer"),
    "circle": ({"nn/a.py": "from paxlike.nn import b\n", "nn/b.py": "from paxlike.nn.a import x\n"}, "of modules"),
    "circle of packages": (
        {
            "train/loop.py": "import paxlike.infer.generate\n",
            "train/state.py": "",
            "infer/generate.py": "import paxlike.train.state\n",
        },
        "infer: is in a circle of packages",
    ),
    "pickle": ({"train/checkpoint.py": "import pickle\n"}, "imports pickle"),
    "pickle, part": ({"train/checkpoint.py": "from pickle import loads\n"}, "imports pickle"),
    "numpy pickle": ({"data/packing.py": "np.load(p, allow_pickle=True)\n"}, "allow_pickle=True"),
    "eval": ({"train/loop.py": "x = eval('1')\n"}, "calls eval"),
    "exec": ({"train/loop.py": "exec(text)\n"}, "calls exec"),
    "shell": ({"../launch/tpu_vm.py": "subprocess.run(line, shell=True)\n"}, "launch/tpu_vm.py:1"),
    "shell by a name": ({"../launch/tpu_vm.py": "subprocess.run(line, shell=yes)\n"}, "shell=yes"),
    "system": ({"../launch/gke.py": "os.system('ls')\n"}, "calls os.system"),
}


@pytest.mark.parametrize("case", OFFENSES)
def test_an_offense_is_named(case, tmp_path):
    files, message = OFFENSES[case]
    assert any(message in line for line in check_layers.check(house(tmp_path, files))), check_layers.check(tmp_path)


def test_what_is_allowed_is_not_named(tmp_path):
    files = {
        "verbs/run.py": "import tyro\ndef f():\n    import jax\n    import paxlike.train.loop\n",
        "train/loop.py": "from paxlike.optim.optimizer import make\nfrom . import state\ndef f():\n    import wandb\n",
        "train/state.py": "import jax\n",
        "optim/optimizer.py": "import optax\nfrom paxlike.optim import schedules\n",
        "optim/schedules.py": "import optax\n",
        "infer/generate.py": "import paxlike.train.state\nmodel.eval()\n",
        "models/palm.py": "from flax import nnx\nnnx.split(m)\nclass A(nnx.Module): pass\n",
        "parallel/runtime.py": "import jax\njax.distributed.initialize()\n",
        "parallel/axes.py": "from paxlike.config import Config\n",
        "accounting/flops.py": "from paxlike.parallel.axes import sizes\n",
        "data/seqio_source.py": "def f():\n    import tensorflow\n    import seqio\n",
        "data/packing.py": "np.load(p, allow_pickle=False)\n",
        "../launch/local.py": "subprocess.run(['ls'], shell=False)\n",
    }
    assert check_layers.check(house(tmp_path, files)) == []


def house(root: Path, files: dict[str, str]) -> Path:
    """A house of empty packages and the given files, named from paxlike/."""
    for name in ["__init__.py", *(f"{package}/__init__.py" for package in check_layers.FLOOR if package)]:
        if name.split("/")[0] not in ("cli", "__main__"):
            write(root / "paxlike" / name, "")
    for name, source in files.items():
        write((root / "paxlike" / name).resolve(), source)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
