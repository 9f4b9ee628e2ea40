"""Adapters as folders of PEFT (adapter_config.json, adapter_model.safetensors) and back.

Logits are compared before a result is kept, and must differ from the base's: a folder whose tensors
are silently ignored is the usual failure of such conversions. Requires neither torch nor PEFT. A
kind of adapter is a file and a row in `FORMATS`.
"""

from pathlib import Path

import jax
import numpy as np

from paxlike.accounting.adapted_parameters import trained_count, trained_shapes
from paxlike.adapt.merge import assembled
from paxlike.architecture.stack import groups
from paxlike.config import Config, ModelConfig, UserError
from paxlike.files import new_folder
from paxlike.interop import hf_layout
from paxlike.interop.conversion_result import Converted
from paxlike.interop.hf import PROBE_TOKENS, TOLERANCE, nested
from paxlike.interop.hf_forward import logits as hf_logits
from paxlike.interop.init_sources import open_source
from paxlike.interop.new_adapter_runs import open_base, write_adapter_run
from paxlike.interop.peft_folder import SETTINGS, Array, Folder, Format, Loaded, Read, write
from paxlike.interop.peft_lora import LORA
from paxlike.interop.peft_prefix import PREFIX_TUNING
from paxlike.interop.reference_logits import logits as paxlike_logits
from paxlike.nn.prefix import NAME
from paxlike.parallel.axes import is_stacked
from paxlike.training.checkpoint_reader import CheckpointReader
from paxlike.training.loaded_run import base_of, numerics_of, on_one_device
from paxlike.training.run_directory import read_config

FORMATS: dict[str, Format] = {"lora": LORA, "prefix": PREFIX_TUNING}
"""By `adapt.kind`."""


def export(run: Path, out: Path, step: int | None = None) -> Converted:
    """Writes the adapter of a run as a PEFT folder.

    Raises UserError, and leaves nothing behind, if the run has no adapter or also trains weights of
    the base, its architecture has no equivalent, or the logits differ.
    """
    config = read_config(run)
    model, adapt = config.model, config.adapt
    if adapt.kind not in FORMATS or adapt.train:
        also = f" and also trains {', '.join(adapt.train)}" if adapt.train else ""
        remedy = "Merge the run instead (paxlike adapt merge)."
        if adapt.kind == "prefix":  # which cannot be merged
            remedy = "Train the prefix without adapt.train."
        raise UserError(
            f"{run} has adapt.kind {adapt.kind}{also}; a PEFT folder has an adapter alone, which "
            f"is {' or '.join(FORMATS)}. {remedy}"
        )
    form = FORMATS[adapt.kind]
    with new_folder(out) as folder, on_one_device():
        trained = _trained(config, run, step)
        written = form.write(config, trained)
        write(folder, config, form.peft_type, written)
        base = base_of(run, config, open_source)
        difference = _check(config, base, trained, form.read(Folder(folder), model))
    count = sum(tensor.size for tensor in written.tensors.values())
    return Converted(out, count, difference, [])


def load(source: Path, base: Path, out: Path) -> Converted:
    """Makes an adapter run of a PEFT folder and its base, a Hugging Face folder or a run.

    Raises UserError, and leaves nothing behind, for settings of PEFT without an equivalent, a
    tensor that is missing, unexpected or of another shape, and logits that differ.
    """
    opened = open_base(base)
    loaded = _read_folder(source, opened.config.model)
    with new_folder(out) as folder, on_one_device():
        config, weights = write_adapter_run(folder, opened, loaded.adapt, loaded.params)
        difference = _check(config, weights, _trained(config, folder, None), loaded)
    return Converted(out, trained_count(config.model, config.adapt), difference, [])


def _trained(config: Config, run: Path, step: int | None) -> dict:
    stored = CheckpointReader(run / "checkpoints", step, trained_only=True)
    read = {n: stored.param(n) for n, _ in trained_shapes(config.model, config.adapt)}
    return jax.tree.map(jax.numpy.asarray, nested(read))


def _read_folder(source: Path, model: ModelConfig) -> Loaded:
    folder = Folder(source)
    forms = {form.peft_type: form for form in FORMATS.values()}
    found = folder.settings.get("peft_type")
    if found not in forms:
        raise UserError(
            f"{source / SETTINGS} has peft_type {found!r}; supported is {' or '.join(forms)}."
        )
    return forms[found].read(folder, model)


def _hf_reader(model: ModelConfig, base: dict) -> Read:
    """Reads the tensors that the base would have as a Hugging Face model."""
    tensors = hf_layout.by_name(hf_layout.tensors(model, hf_layout.family(model)))

    def read(name: str) -> Array:
        shared = tensors[name]
        params = [np.asarray(_param(base, tensor.param, tensor.layer)) for tensor in shared]
        return hf_layout.joined(shared, params)

    return read


def _param(params: dict, name: str, layer: int | None) -> Array:
    folder, _, leaf = name.rpartition("/")
    stack = params[folder][leaf] if is_stacked(name) else params[leaf]
    return stack if layer is None else stack[layer]


def _check(config: Config, base: dict, trained: dict, loaded: Loaded) -> str:
    """Compares the logits of the adapted model with those of a Hugging Face model and its
    adapter."""
    model, dtype = config.model, config.precision.params
    length = config.data.sequence_length
    hf_config = hf_layout.to_config(model, length, dtype, 0)
    count = min(PROBE_TOKENS, length)
    tokens_T = np.random.default_rng(0).integers(0, model.vocab_size, count).astype(np.int32)
    params = assembled(config, numerics_of(config), base, trained)
    whole, read = jax.device_get(params), _hf_reader(model, jax.device_get(base))
    prefixes = {g.name: p[NAME] for g in groups(model) if NAME in (p := whole[g.name])}
    ours = paxlike_logits(model, lambda n, layer: _param(whole, n, layer), tokens_T, prefixes)
    adapted, past = loaded.adapted(read)
    theirs = hf_logits(hf_config, adapted, tokens_T, past)
    plain = hf_logits(hf_config, read, tokens_T)
    difference = float(np.abs(theirs - ours).max() / ours.std())
    change = float(np.abs(theirs - plain).max() / ours.std())
    if not difference <= TOLERANCE[dtype]:
        raise UserError(
            f"the logits of the converted adapter differ by {difference:.3g} of their standard "
            f"deviation (tolerance {TOLERANCE[dtype]}); nothing was written."
        )
    if not change:
        raise UserError(
            "the adapter does not change the base's logits (LoRA's B is 0): train it first. "
            "Nothing was written."
        )
    return (
        f"logits differ by at most {difference:.1e} of their standard deviation, and by "
        f"{change:.1e} from the base's"
    )
