"""Regenerates the golden logits of the Hugging Face conversions (requires the extra hf).

    python -m tools.update_hf_goldens

For each kind of model in `tests/interop_cases.py`, stores the logits that transformers computes
after the last token of a prompt.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from interop_cases import KINDS, PROMPT, case, make_run  # noqa: E402

from paxlike.interop.hf import to_hf  # noqa: E402


def main() -> None:
    goldens = {}
    for kind, changes in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "out")
            to_hf(make_run(Path(folder, "run"), case(**changes)), out)
            model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="float32")
        with torch.no_grad():
            last = model(torch.tensor(PROMPT[None].tolist())).logits[0, -1]
        goldens[kind] = [round(value, 6) for value in last[:12].tolist()]
    (ROOT / "tests" / "golden" / "hf_logits.json").write_text(json.dumps(goldens, indent=1) + "\n")


if __name__ == "__main__":
    main()
