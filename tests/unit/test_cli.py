"""The command line: commands, help, messages, exit codes, and that it starts without the heavy
modules.
"""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from sample_runs import start, step, write

from paxlike import __version__, cli
from paxlike.commands.flags import given_fields
from paxlike.config import UserError, load
from paxlike.data.prepare import PrepareConfig, prepare
from paxlike.planning.simulated_step import Step
from paxlike.planning.timeline import Timeline

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "configs" / "tiny.py")


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of `paxlike arguments`."""

    def call(*arguments: str):
        monkeypatch.setattr(sys, "argv", ["paxlike", *arguments])
        try:
            cli.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def good_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"text number {number}\n" * 20)
    prepare(
        PrepareConfig(
            (str(folder / "*.txt"),),
            str(folder / "store"),
            tokenizer="bytes",
            validation_fraction=0.3,
        )
    )
    return folder / "store"


# Commands and help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_has_every_command(run, arguments):
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    listed = [line[2:] for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    missing = [
        command
        for command in cli.COMMANDS
        if not any(line.startswith(f"{command} ") for line in listed)
    ]
    assert missing == [] and len(listed) == len(cli.COMMANDS)


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0 and f"paxlike {command}" in out.replace("\n", " ")


def test_version(run):
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "unknown command 'trian'. Did you mean 'train'?"),
        (("data", "verfy"), "unknown command 'data verfy'. Did you mean 'data verify'?"),
        (("data",), "unknown command 'data'."),
        (("zzz",), "unknown command 'zzz'.\n"),
    ],
)
def test_an_unknown_command(run, arguments, message):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and err.startswith("paxlike: ") and message.rstrip("?") in err
    assert "usage: paxlike COMMAND" in err


@pytest.mark.parametrize(
    ("command", "what"),
    [("train", "CONFIG"), ("eval", "RUN"), ("info", "CONFIG"), ("generate", "RUN")],
)
def test_a_command_without_what_it_works_on(run, command, what):
    code, _, err = run(command)
    assert code == 2 and err.startswith(f"paxlike: `paxlike {command}` requires {what} first")


def test_a_missing_config_is_one_message(run):
    code, _, err = run("info", TINY.replace("tiny", "tini"))
    assert code == 2 and "there is no config file" in err and f"Did you mean {TINY}?" in err
    assert "Traceback" not in err


def test_a_flag_that_is_misspelled(run):
    code, out, err = run("info", TINY, "--model.layer", "3")
    assert code == 2 and "--model.layers" in out + err


def test_a_value_that_cannot_work(run):
    code, out, err = run("info", TINY, "--model.kv-heads", "3")
    assert code == 2 and "model.kv_heads 3" in " ".join((out + err).replace("│", " ").split())


# Report


@pytest.fixture
def made(tmp_path):
    """A run directory with four steps."""
    return write(
        tmp_path / "made",
        [start(), *(step(k) for k in range(1, 5)), {"event": "finish", "step": 4}],
    )


def test_report_shows_a_table_and_writes_a_page_into_the_run(run, made):
    code, out, err = run("report", str(made))
    assert (code, err) == (0, "") and "MFU palm" in out and "68.2%" in out
    assert "paxlike report" in (made / "report.html").read_text() and "page: " in out


def test_report_of_several_runs_writes_its_page_here_or_where_it_is_told(
    run, made, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run("report", str(made), str(made))[0] == 0 and (tmp_path / "report.html").is_file()
    assert (
        run("report", str(made), str(made), "--html", "both.html")[0] == 0
        and (tmp_path / "both.html").is_file()
    )
    assert not (made / "report.html").exists()


def test_report_as_json_writes_no_page_unless_asked(run, made, tmp_path):
    code, out, _ = run("report", str(made), "--json")
    assert (
        code == 0
        and json.loads(out)["runs"][0]["steps"]["done"] == 4
        and not (made / "report.html").exists()
    )
    code, out, _ = run("report", str(made), "--json", "--html", str(tmp_path / "page.html"))
    assert code == 0 and json.loads(out) and (tmp_path / "page.html").is_file()


PLAIN = (
    "--config",
    str(ROOT / "configs" / "palm_540b.py"),
    "--tokens-per-second",
    "238300",
    "--chip",
    "v4",
    "--chips",
    "6144",
)


def test_report_from_plain_numbers(run, tmp_path):
    code, out, _ = run("report", *PLAIN)
    assert code == 0 and all(figure in out for figure in ("46.2%", "45.7%", "57.8%", "275 TFLOP/s"))
    code, out, _ = run("report", *PLAIN, "--json", "--html", str(tmp_path / "page.html"))
    assert code == 0 and json.loads(out)["runs"][0]["utilization"]
    assert "57.8%" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "requires either run directories or --config"),
        (("nowhere",), "nowhere does not exist. Specify a directory"),
        ((str(ROOT),), "is not a run directory"),
        (PLAIN[:2], "--config also requires --tokens-per-second, --chip, --chips"),
        ((*PLAIN, "--chip", "v44"), "there is no chip 'v44'"),
        ((*PLAIN, "--tokens-per-second", "0"), "tokens per second is 0"),
        ((*PLAIN, "--dtype", "float8"), "has no peak for float8"),
        ((*PLAIN, "--html", "/nowhere/page.html"), "there is no directory /nowhere"),
    ],
)
def test_report_mistakes(run, arguments, message):
    code, _, err = run("report", *arguments)
    assert code == 2 and message in err and "Traceback" not in err


def test_report_takes_runs_or_a_config_but_not_both(run, made):
    assert "requires either" in run("report", str(made), *PLAIN)[2]
    assert "--chips require --config" in run("report", str(made), "--chips", "4")[2]


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("fix this"), 2, "paxlike: fix this\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "run/x"),
            2,
            "paxlike: No space left on device: run/x.",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "run/y"),
            2,
            "paxlike: Permission denied: run/y.",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(run, monkeypatch, error, code, message):
    def fail(arguments):
        raise error

    monkeypatch.setattr("paxlike.commands.analysis.info_command", fail)
    found, _, err = run("info")
    assert found == code and err.startswith(message) and "Traceback" not in err


def test_a_mistake_of_the_program_keeps_its_traceback(run, monkeypatch):
    def fail(arguments):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("paxlike.commands.analysis.info_command", fail)
    with pytest.raises(OSError, match="Bad file descriptor"):
        run("info")


# Info


def test_info_does_not_read_a_source(run):
    code, _, err = run("info", TINY, "--init.from", "base", "--init.config")
    assert code == 2 and "uses the model of CONFIG and does not read init.source base" in err
    assert run("info", TINY, "--init.from", "base")[0] == 0


def test_given_fields():
    words = ["--model.kv-heads", "2", "--model.rope-scaling.kind=yarn", "--init.config"]
    words += ["--model.no-qk-norm", "--data.store", "x"]
    assert given_fields(words, "model") == {"kv_heads", "rope_scaling", "qk_norm"}


def test_info_prints_counts(run):
    """Those of a PaLM: a layer has a norm, three feed-forward matrices, q and o, k and v; then the
    embedding, a last norm.
    """
    m = load(TINY).model
    layer = m.d_model * (1 + 3 * m.d_ff + 2 * m.heads * m.head_dim + 2 * m.kv_heads * m.head_dim)
    total = m.layers * layer + m.vocab_size * m.d_model + m.d_model
    code, out, _ = run("info", TINY)
    assert code == 0 and f"{total:,}" in out
    code, out, _ = run("info", TINY, "--json")
    assert code == 0 and total in _numbers(json.loads(out))


def test_info_takes_overrides_and_shows_sharding(run):
    base, more = (
        _numbers(json.loads(run("info", TINY, "--json", "--model.layers", n)[1]))
        for n in ("4", "5")
    )
    assert base != more
    assert "Sharding on" not in run("info", TINY)[1]
    assert (
        "Sharding on pod 1 x data 4 x model 2"
        in run("info", TINY, "--devices", "8", "--mesh.model", "2")[1]
    )


def test_info_of_a_mesh_that_does_not_fit(run):
    code, _, err = run("info", TINY, "--devices", "8", "--mesh.model", "3")
    assert code == 2 and "mesh pod 1 x data -1 x model 3 does not fit 8 devices" in err


def _numbers(value: object) -> list:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in _numbers(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in _numbers(inner)]
    return [value]


# Data


def test_verify_a_whole_store(run, good_store):
    code, out, err = run("data", "verify", str(good_store))
    assert (code, err) == (0, "") and out.startswith(f"{good_store}: verified, fingerprint ")


@pytest.mark.parametrize("damage", ["a bit", "cut short", "missing"])
def test_verify_a_damaged_store(run, good_store, tmp_path, damage):
    copy = tmp_path / "store"
    copy.mkdir()
    for file in good_store.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    tokens = copy / "train.tokens"
    content = tokens.read_bytes()
    if damage == "a bit":
        tokens.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "cut short":
        tokens.write_bytes(content[:-2])
    else:
        tokens.unlink()
    code, out, err = run("data", "verify", str(copy))
    assert code == 2 and out == "" and f"{tokens}" in err and "Prepare the store again" in err


def test_verify_what_is_no_store(run, tmp_path):
    code, _, err = run("data", "verify", str(tmp_path))
    assert code == 2 and "is not a token store" in err


def test_verify_takes_one_store(run, good_store):
    code, out, _ = run("data", "verify", str(good_store), "--quick")
    assert code == 2 and out.startswith("usage: paxlike data verify STORE")


# Start-up


def imported(*arguments: str) -> set[str]:
    """Top-level modules that `python -m paxlike arguments` imports, by `-X importtime`."""
    command = [sys.executable, "-X", "importtime", "-m", "paxlike", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (
        line.rsplit("|", 1)[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    )
    return {line.split(".")[0] for line in lines}


def test_help_starts_without_heavy_modules():
    found = imported("--help")
    assert "paxlike" in found and found & {"jax", "flax", "tyro", "rich", "numpy"} == set()


def test_info_starts_without_jax():
    found = imported("info", TINY, "--devices", "8")
    assert {"tyro", "rich"} <= found and found & {"jax", "flax", "orbax", "grain"} == set()


# Plan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "`paxlike plan` requires --topology: v4:4x4x4, h100:4x8, cpu:8."),
        (("--topology", "v4-128"), "the topology 'v4-128' is not of the form v4:4x4x4"),
        (("--topology", "v9:4x4"), "unknown chip 'v9'; known chips are v2, v3"),
        (("--topology", "h100:16"), "needs two sizes, hosts x GPUs per host, such as h100:16x8"),
        (
            ("--topology", "cpu:8", "--mesh.model", "3"),
            "mesh pod 1 x data -1 x model 3 does not fit 8 devices",
        ),
        (
            ("--topology", "v4:2x2x4", "--pods", "2"),
            "--pods is 2, but mesh.pod is 1; set --mesh.pod 2, or omit --pods.",
        ),
        (("--topology", "cpu:8", "--pods", "0"), "--pods is 0"),
    ],
)
def test_plan_refuses_in_one_message(run, arguments, message):
    code, out, err = run("plan", TINY, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("paxlike: ") and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("topology", "extra"), [("v4:2x2x1", "plan-tpu"), ("h100:1x8", "plan-gpu")]
)
def test_plan_without_the_compiler_names_the_extra_and_estimates(run, monkeypatch, topology, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("paxlike.parallel.runtime.start", lambda devices: None)
    code, out, err = run("plan", TINY, "--topology", topology)
    assert code == 2 and out == ""
    assert (
        f"pip install 'paxlike[{extra}]'" in err
        and "Estimated by arithmetic, nothing compiled" in err
        and "optimizer state" in err
    )


def test_a_model_larger_than_the_machine_is_refused_at_once(run, tmp_path, monkeypatch):
    """Its heads are valid, but XLA would wait forever for memory that does not exist."""
    monkeypatch.setattr("paxlike.parallel.runtime.start", lambda *_, **__: None)
    code, _, err = run(
        "train", TINY, "--model.heads", "2147483648", "--run-dir", str(tmp_path / "run")
    )
    assert code == 2 and "on each device, which has" in err and "Traceback" not in err


NO_STEP = Step(Timeline(), [], [], 0.0, 0.0)


def test_plan_prints_writes_and_exits_by_whether_it_fits(run, monkeypatch, tmp_path):
    told = {
        "config": "tiny",
        "fits": False,
        "memory": {"parts": {}, "needed": 2**31, "usable": 2**30},
        "refused": "too large",
    }
    told |= {
        "cluster": {"name": "cpu:8", "pods": 1, "chips": 8, "chip": None},
        "mesh": {"data": 8},
        "remat": "none",
        "buffers": [],
    }
    told |= {
        "batch": {"sequences": 1, "sequence_length": 2, "tokens_per_chip": 0.25},
        "compile": {"seconds": 1},
    }
    monkeypatch.setattr("paxlike.parallel.runtime.start", lambda devices: None)
    monkeypatch.setattr(
        "paxlike.planning.command.plan_and_step", lambda config, made, say: (told, None, NO_STEP)
    )
    monkeypatch.setattr("paxlike.planning.command.with_remedies", lambda told, *rest: told)
    code, out, _ = run("plan", TINY, "--topology", "cpu:8", "--html", str(tmp_path / "page.html"))
    assert code == 1 and "DOES NOT FIT: 2.00 GiB of 1.00 GiB usable" in out
    assert "DOES NOT FIT" in (tmp_path / "page.html").read_text()
    assert (
        run("plan", TINY, "--topology", "cpu:8", "--html", str(tmp_path / "page.html"))[0] == 1
    )  # over a page of its own
    told["fits"] = True
    code, out, _ = run("plan", TINY, "--topology", "cpu:8", "--json")
    assert code == 0 and json.loads(out) == told


@pytest.mark.parametrize(
    "command",
    [
        ("plan", TINY, "--topology", "cpu:8", "--html", "mine"),
        ("plan", TINY, "--topology", "cpu:8", "--trace", "mine"),
        ("report", *PLAIN, "--html", "mine"),
        ("pack", "runs/any", "mine"),
        ("prune", "runs/any", "mine", "--layers", "1"),
        ("prune", "runs/any", "--html", "mine"),
        ("convert", "to-hf", "runs/any", "mine"),
        ("convert", "to-t5x", "runs/any", "mine"),
        ("convert", "from-hf", "any", "mine"),
        ("convert", "from-t5x", "any", TINY, "mine"),
        ("data", "prepare", "--input", "mine", "--output", "mine", "--tokenizer", "bytes"),
        ("train", TINY, "--run-dir", "mine"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_what_a_user_has_is_not_written_over(run, command, tmp_path, monkeypatch):
    """And it is said before anything that takes long: the runs and folders to read are not even
    there.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("paxlike.parallel.runtime.start", lambda *_, **__: None)
    monkeypatch.setattr(
        "paxlike.planning.command.plan_and_step", lambda *_: pytest.fail("it was compiled")
    )
    (tmp_path / "mine").write_text("dear diary")
    code, _, err = run(*command)
    assert (
        code == 2
        and "mine" in err
        and ("is not overwritten" in err or "left alone" in err or "not a directory" in err)
    )
    assert (tmp_path / "mine").read_text() == "dear diary" and [
        p.name for p in tmp_path.iterdir()
    ] == ["mine"]
