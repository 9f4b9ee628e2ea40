"""Runs to Hugging Face folders and back, checked by their logits before they are there.

`to_hf` holds a layer or two at a time, never the model. `from_hf` holds the model's parameters once, because a checkpoint is written from
whole arrays. Neither needs torch or transformers.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paxlike.accounting.parameters import parameter_count, stored_shapes
from paxlike.config import Config, DataConfig, ModelConfig, PrecisionConfig, UserError, to_json
from paxlike.data.tokenizer import load_tokenizer
from paxlike.files import new_folder
from paxlike.interop import hf_layout, hf_tokenizer, safetensors
from paxlike.interop.converted import Converted
from paxlike.interop.hf_forward import logits as their_logits
from paxlike.interop.reference import logits as our_logits
from paxlike.train.checkpoint import write_checkpoint
from paxlike.train.run import read_config
from paxlike.train.stored import Stored

TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Largest difference of two logits, over the deviation of all, by the dtype of the parameters. A few layers in float32 give about 1e-6,
a norm's scale rounded to bfloat16 up to 1e-2, a wrong layout about 1."""
PROBE_TOKENS = 24


def to_hf(run: Path, out: Path, step: int | None = None, shard_bytes: int = 5 * 10**9) -> Converted:
    """Writes a run's checkpoint as a folder for AutoModelForCausalLM and AutoTokenizer.

    Raises UserError, and leaves nothing behind, where the run cannot be read, `out` exists, the architecture or tokenizer has no
    equivalent, or the logits differ.
    """
    config = read_config(run)
    model, dtype = config.model, config.precision.params
    tokenizer = load_tokenizer(run / "tokenizer")
    told = hf_layout.to_config(model, config.data.sequence_length, dtype, tokenizer.eod)
    stored = Stored(run / "checkpoints", step)
    table = hf_layout.tensors(model)
    with new_folder(out) as folder:
        notes = hf_tokenizer.write(folder, tokenizer, config.data.sequence_length)
        (folder / "config.json").write_text(json.dumps(told, indent=2) + "\n")

        def read(tensor: hf_layout.Tensor) -> np.ndarray:
            return tensor.to_hf(stored.param(tensor.ours, tensor.layer))

        entries = [safetensors.Entry(t.name, t.shape, functools.partial(read, t)) for t in table]
        safetensors.write(folder, entries, safetensors.numpy_dtype(dtype), shard_bytes)
        difference = check(told, safetensors.Tensors(folder).read, model, stored.param, TOLERANCE[dtype])
    return Converted(out, parameter_count(model), _told(difference), notes)


def from_hf(source: Path, out: Path) -> Converted:
    """Makes a run folder of a Hugging Face folder: generated from, served and converted as any other. It has no optimizer's state.

    Raises UserError, and leaves nothing behind, for what `to_hf` does and for a tensor that is missing, extra or misshapen.
    """
    told = _config_of(source)
    model = hf_layout.from_config(told)
    tokenizer = hf_tokenizer.read(source, model.vocab_size, told.get("eos_token_id"))
    files = safetensors.Tensors(source)
    expected = _expected(told, model)
    _check_shapes(files.shapes, expected)
    dtype = "bfloat16" if files.dtypes == {safetensors.DTYPES["BF16"]} else "float32"
    params = _assembled(files, model, expected, safetensors.numpy_dtype(dtype))
    with new_folder(out) as folder:
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in out.name).lstrip(".") or "run"
        data = DataConfig(sequence_length=told.get("max_position_embeddings") or DataConfig.sequence_length)
        config = Config(name=name, model=model, data=data, precision=PrecisionConfig(params=dtype))
        (folder / "config.json").write_text(to_json(config))
        (folder / "tokenizer").mkdir()
        tokenizer.save(folder / "tokenizer")
        write_checkpoint(folder / "checkpoints", {"params": nested(params)}, 0, {"step": 0})
        stored = Stored(folder / "checkpoints")
        difference = check(told, files.read, model, stored.param, TOLERANCE[dtype])
    return Converted(out, parameter_count(model), _told(difference), [])


def _told(difference: float) -> str:
    return f"logits differ by at most {difference:.1e} of their deviation"


def check(
    told: dict,
    theirs: Callable[[str], np.ndarray],
    model: ModelConfig,
    ours: Callable[[str, int | None], np.ndarray],
    tolerance: float,
) -> float:
    """The largest difference of logits on a few random tokens, over their deviation. Raises UserError above `tolerance`."""
    tokens_T = np.random.default_rng(0).integers(0, model.vocab_size, PROBE_TOKENS).astype(np.int32)
    tokens_T[-1] = model.vocab_size - 1
    expected = our_logits(model, ours, tokens_T)
    difference = float(np.abs(their_logits(told, theirs, tokens_T) - expected).max() / expected.std())
    if not difference <= tolerance:
        raise UserError(
            f"the converted model's logits differ from the original's by {difference:.3g} of their deviation (at most "
            f"{tolerance} is rounding); nothing is written. The parameters may hold values that are not finite."
        )
    return difference


def _config_of(source: Path) -> dict:
    try:
        told = json.loads((source / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{source / 'config.json'} cannot be read: {error}.") from error
    if not isinstance(told, dict):
        raise UserError(f"{source / 'config.json'} holds no object.")
    return told


def _expected(told: dict, model: ModelConfig) -> list[hf_layout.Tensor]:
    """The tensors that the folder must have, with the scale of their logits put into our last norm."""
    factor, expected = hf_layout.norm_factor(told, model), []
    for tensor in hf_layout.tensors(model):
        if tensor.ours == "scale_D":
            tensor = tensor._replace(from_hf=lambda x, made=tensor.from_hf: made(hf_layout.times(x, factor)))
        expected.append(tensor)
    return expected


def _check_shapes(found: dict[str, tuple[int, ...]], expected: list[hf_layout.Tensor]) -> None:
    wanted = {tensor.name: tensor.shape for tensor in expected}
    # A buffer that older versions of Llama saved; it follows from rope_theta.
    found = {name: shape for name, shape in found.items() if not name.endswith("rotary_emb.inv_freq")}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} {found[name]} is extra" for name in found if name not in wanted]
    wrong += [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if wrong:
        more = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"the tensors do not fit config.json: {'; '.join(wrong[:5])}{more}.")


def _assembled(
    files: safetensors.Tensors, model: ModelConfig, expected: list[hf_layout.Tensor], dtype: np.dtype
) -> dict[str, np.ndarray]:
    params = {name: np.empty(shape, dtype) for name, shape in stored_shapes(model)}
    for tensor in expected:
        target = params[tensor.ours]
        target[... if tensor.layer is None else tensor.layer] = tensor.from_hf(files.read(tensor.name))
    return params


def nested(params: dict[str, np.ndarray]) -> dict:
    """`blocks/wq_DNH` -> value as the nested dict that a checkpoint has."""
    nested: dict = {"blocks": {}}
    for name, array in params.items():
        folder, _, leaf = name.rpartition("/")
        (nested[folder] if folder else nested)[leaf] = array
    return nested
