"""A Hugging Face folder as the source of parameters, read from its files in parts."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from paxlike.config import UserError
from paxlike.data.tokenizer import Tokenizer
from paxlike.interop import hf_layout, hf_tokenizer, safetensors
from paxlike.interop.hf_layout import Tensor


class HfSource:
    """A folder with config.json, safetensors files and a tokenizer."""

    def __init__(self, folder: Path):
        """Reads no tensors. Raises UserError if the folder is not one, its architecture is not
        supported, or a tensor is missing, unexpected or has the wrong shape.
        """
        self.folder, self.config = folder, read_config(folder)
        # Files have no rows that pad the vocabulary.
        self.model = dataclasses.replace(hf_layout.from_config(self.config), vocab_multiple=1)
        self.tokenizer: Tokenizer | None = None
        if any((folder / name).is_file() for name in hf_tokenizer.FILES):
            self.tokenizer = self.read_tokenizer()
        self.files = safetensors.Tensors(folder)
        family = hf_layout.family_of(self.config)
        self.files.add_prefix(family.optional_prefix)
        self.tensors = hf_layout.tensors(self.model, family)
        check_shapes(self.files.shapes, self.tensors, family.ignored)
        self.name = f"the Hugging Face model {folder}"
        self.dtype = "bfloat16" if self.files.dtypes == {safetensors.DTYPES["BF16"]} else "float32"
        self.length: int | None = self.model.learned_positions or self.config.get(
            "max_position_embeddings"
        )
        self._by_param: dict[tuple[str, int | None], list[Tensor]] = {}
        for tensor in self.tensors:
            self._by_param.setdefault((tensor.param, tensor.layer), []).append(tensor)

    def param(self, name: str, layer: int | None) -> np.ndarray:
        """As `Source.param`: usually a view of the file, of which a part reads only its pages.
        Experts, which are tensors of their own, are copied into one array.
        """
        parts = self._by_param[name, layer]
        found = [tensor.from_hf(self.files.view(tensor.name)) for tensor in parts]
        return found[0] if parts[0].expert is None else np.stack(found)

    @property
    def params(self) -> list[tuple[str, int | None]]:
        """(name, layer) of every parameter, in the order of the files' tensors."""
        return list(self._by_param)

    def read_tokenizer(self) -> Tokenizer:
        """Raises UserError if there is none, or it does not match the model."""
        eos = self.config.get("eos_token_id")
        return hf_tokenizer.read(self.folder, self.model.vocab_size, eos)


def read_config(folder: Path) -> dict:
    """The contents of config.json. Raises UserError."""
    try:
        hf_config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read: {error}.") from error
    if not isinstance(hf_config, dict):
        raise UserError(f"{folder / 'config.json'} is not a JSON object.")
    return hf_config


def check_shapes(
    found: dict[str, tuple[int, ...]], expected: list[Tensor], ignored: tuple[str, ...]
) -> None:
    """Raises UserError naming tensors that are missing, unexpected or misshapen.

    ignored: ends of the names of tensors that are not read.
    """
    shapes = {tensor.name: tensor.shape for tensor in expected}
    found = {name: shape for name, shape in found.items() if not name.endswith(ignored)}
    errors = [f"{name} is missing" for name in shapes if name not in found]
    errors += [f"{name} {found[name]} is unexpected" for name in found if name not in shapes]
    errors += [
        f"{name} is {found[name]}, not {shape}"
        for name, shape in shapes.items()
        if name in found and found[name] != shape
    ]
    if errors:
        more = f", and {len(errors) - 5} more" if len(errors) > 5 else ""
        raise UserError(f"the tensors do not fit config.json: {'; '.join(errors[:5])}{more}.")
