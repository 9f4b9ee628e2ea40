"""Small tokenizer.json files of the kinds that models use, trained on the spot."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\nimport numpy as np\n\tfor i in range(10):\n",
    "naïve café 123 45.6 – “quotes”, 漢字かな العربية עברית 😀👍🏽 e\u0301\r\n",
] * 20
DIFFICULT = (
    "",
    " ",
    "  two  spaces ",
    "tab\tnew\nline\r\nCRLF\r",
    "nul\x00byte",
    "😀👨\u200d👩\u200d👧\u200d👦👍🏽",
    "e\u0301 a\u0308",
    "שלום العربية \u202eabc",
    "\u2581 \ufffd \ufeff",
    "<|end_of_text|> </s> <s> <unk> <0x41>",
    "1234567890 3.14",
    "don't I'LL",
    "import  os\n\n\n    x = 1\n",
    "\u00a0\u3000wide",
    "a" * 100_000,
)
"""Texts on which tokenizers differ if anything is wrong."""


def byte_level(folder: Path, added: list[str] | None = None) -> Path:
    """As Llama 3's and Qwen's: bytes, a template that begins a text, added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", special=False)])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in added or ()])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    end = {
        "__type": "AddedToken", "content": "<|end_of_text|>", "lstrip": False, "rstrip": False,
        "normalized": False, "single_word": False, "special": True,
    }  # fmt: skip
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": end}
    return _write(folder, tokenizer, settings)


def sentencepiece_bpe(folder: Path) -> Path:
    """As Llama 2's: a dummy prefix, spaces as marks, byte fallback."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    # As SentencePiece trains: no piece has a space in its middle.
    trained.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    trained.train_from_iterator(
        TEXTS[:1] * 20, trainers.BpeTrainer(vocab_size=120, show_progress=False)
    )
    found = json.loads(trained.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *found["vocab"]]
    vocab = {piece: id_ for id_, piece in enumerate(pieces)}
    merges = [tuple(pair) for pair in found["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return _write(folder, tokenizer, {"bos_token": "<s>", "eos_token": "</s>"})


def unigram(folder: Path) -> Path:
    """As T5's and ALBERT's: pieces with scores, and no byte fallback."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _write(folder, tokenizer, {"eos_token": "</s>"})


KINDS = {"byte_level": byte_level, "sentencepiece_bpe": sentencepiece_bpe, "unigram": unigram}


def _write(folder: Path, tokenizer: Tokenizer, settings: dict) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
