"""Conversations, a tokenizer with chat tokens, and what the model learns of them, by hand."""

import json
from pathlib import Path

import made_tokenizers
import numpy as np
from tokenizers import AddedToken, Tokenizer

CHAT_TOKENS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
TURNS = [
    ("user", "What is 漢字 + 1?"),
    ("assistant", "It is é😀.\n\nYes."),
    ("user", "<|im_end|> and <|eot_id|> are text; so is <|end_of_text|>"),
    ("assistant", "<|im_start|>assistant\nalso text"),
    ("user", "last"),
    ("assistant", "1 2 3"),
]
CONVERSATIONS = {
    "one turn": TURNS[:2],
    "three turns": TURNS,
    "system": [("system", "Be brief, <|im_end|>."), *TURNS[:4]],
    "tool": [*TURNS[:2], ("tool", "42"), ("assistant", "It is 42.")],
    "whitespace": [("user", "  a \n"), ("assistant", "b  c\n\n d"), ("user", "\te"), *TURNS[1:2]],
    "ends with the user": TURNS[:3],
}


def messages(turns) -> list[dict]:
    return [{"role": role, "content": text} for role, text in turns]


def tokenizer_folder(folder: Path, template: str | None = None) -> Path:
    """A byte-level tokenizer with the tokens of ChatML and Llama 3."""
    made_tokenizers.byte_level(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CHAT_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    return folder


def chatml(turns) -> list[tuple[str | None, str | None, bool]]:
    """(special token, text, whether it is learned) of each stretch."""
    stretches = []
    for role, text in turns:
        learned = role == "assistant"
        stretches += [("<|im_start|>", None, False), (None, f"{role}\n", False)]
        stretches += [(None, text, learned), ("<|im_end|>", None, learned), (None, "\n", False)]
    return stretches


def llama3(turns) -> list[tuple[str | None, str | None, bool]]:
    stretches = [("<|begin_of_text|>", None, False)]
    for role, text in turns:
        learned, name = role == "assistant", "ipython" if role == "tool" else role
        stretches += [("<|start_header_id|>", None, False), (None, name, False)]
        stretches += [("<|end_header_id|>", None, False), (None, "\n\n", False)]
        stretches += [(None, text.strip(), learned), ("<|eot_id|>", None, learned)]
    return stretches


def plain(turns) -> list[tuple[str | None, str | None, bool]]:
    stretches, text = [("<|begin_of_text|>", None, False)], ""
    for number, (role, content) in enumerate(turns):
        text += ("\n\n" if number else "") + role.capitalize() + ":\n"
        if role == "assistant":
            stretches += [(None, text, False), (None, content.strip(), True)]
            stretches.append(("<|end_of_text|>", None, True))
            text = ""
        else:
            text += content.strip()
    return [*stretches, (None, text, False)] if text else stretches


BY_HAND = {"chatml": chatml, "llama3": llama3, "plain": plain}


def encoded(folder: Path, stretches) -> tuple[list[int], list[int]]:
    """(ids, mask) with the library `tokenizers` alone. Text before text is one text, if a token
    does not join them."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids, mask = [], []
    for special, text, learned in stretches:
        if special is not None:
            new = [tokenizer.token_to_id(special)]
        else:
            new = tokenizer.encode(text, add_special_tokens=False).ids
        ids += new
        mask += [int(learned)] * len(new)
    return ids, mask


def write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def made_conversations(count: int, seed: int = 0) -> list[dict]:
    """Short conversations that differ."""
    random = np.random.default_rng(seed)
    words = ["red", "green", "blue", "one", "two", "three"]
    records = []
    for number in range(count):
        turns = []
        for _ in range(random.integers(1, 3)):
            picked = " ".join(random.choice(words, random.integers(1, 5)))
            turns += [("user", f"{number} {picked}"), ("assistant", picked.upper())]
        records.append({"messages": messages(turns)})
    return records
