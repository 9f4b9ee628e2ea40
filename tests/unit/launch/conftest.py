"""Runs the launchers with recorders in place of gcloud, kubectl, sbatch, srun and scontrol."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("gcloud", "kubectl", "sbatch", "srun", "scontrol")
RECORDER = """#!{python} -IS
import json, os, subprocess, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
stdin = "" if sys.stdin.isatty() else sys.stdin.read()
kept = {{k: v for k, v in os.environ.items() if k.startswith("JAX_LOCAL")}}
with open({record!r}, "a") as file:
    file.write(json.dumps({{"tool": name, "argv": arguments, "stdin": stdin, "env": kept}}) + "\\n")
script = os.environ.get("FAKE_" + name.upper())
if script:
    sys.exit(subprocess.run(["bash", "-c", script, name, *arguments]).returncode)
"""


class Sandbox:
    """A working directory with recorders on PATH, and the calls that they recorded."""

    def __init__(self, folder: Path):
        self.folder, self.record = folder, folder / "record.jsonl"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).write_text(
                RECORDER.format(python=sys.executable, record=str(self.record))
            )
            (self.bin / tool).chmod(0o755)
        self.env = {
            **{
                k: v
                for k, v in os.environ.items()
                if not k.startswith(("CLOUDSDK_", "SLURM_", "SBATCH_", "PAXLIKE_"))
            },
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }

    def run(
        self, script: str, *arguments: str, stdin: str = "", **env: str
    ) -> subprocess.CompletedProcess:
        program = [sys.executable, "-S"] if script.endswith(".py") else ["bash"]
        return self._run([*program, str(ROOT / "launch" / script), *arguments], stdin, env)

    def bash(self, text: str, **env: str) -> subprocess.CompletedProcess:
        return self._run(["bash", "-c", text], "", env)

    def _run(self, argv: list[str], stdin: str, env: dict[str, str]) -> subprocess.CompletedProcess:
        return subprocess.run(
            argv,
            cwd=self.folder,
            env=self.env | env,
            input=stdin,
            text=True,
            capture_output=True,
            timeout=300,
        )

    def calls(self) -> list[dict]:
        """The calls recorded since the last call of this method."""
        lines = self.record.read_text().splitlines() if self.record.exists() else []
        self.record.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


HARD_TO_QUOTE = [
    "configs/a b.py",
    "--run-dir",
    "it's",
    '"quoted"',
    "; touch pwned",
    "$HOME",
    "`touch pwned`",
    "$(touch pwned)",
    "$$(HOME)",
    "a\nb",
    "*",
    "",
    "--",
    "\\",
    "é",
    "&& false",
    "#",
    "!x",
    "~",
    "END",
]
"""Arguments that one level of quoting too many or too few would change."""
