"""The command line. The module of a command is imported only when that command runs."""

import difflib
import errno
import importlib
import os
import sys

from paxlike.config import JobError, SaveError, UserError

HELP = """\
usage: paxlike COMMAND ...

train and use models
  train CONFIG              Train a model, or resume an existing run. With --init.from PATH, start
                            from a Hugging Face model, a run or a T5X checkpoint.
  eval RUN                  Report validation loss, lm-eval tasks or seqio metrics.
  generate RUN PROMPT       Generate text; --chat answers as an assistant.
  serve RUN                 Serve OpenAI-compatible completions and chat over HTTP.
  pack RUN FILE             Write a quantized run's 1-bit or 2-bit weights to one file.

plan and account
  info CONFIG               Show parameters, FLOPs, memory and sharding of a config.
  plan CONFIG --topology v4:4x4x4
                            Compile the train step for a cluster you don't have: memory,
                            collectives, predicted speed.
  report RUN [RUN ...]      Compare runs: speed, MFU and HFU, goodput, memory; a table and a page.

convert checkpoints
  convert to-hf RUN OUT     Export a run to a Hugging Face directory.
  convert from-hf DIR OUT   Import a Hugging Face directory (Llama, Qwen, ...) as a run.
  convert to-t5x RUN OUT    Export a run to a T5X checkpoint.
  convert from-t5x CHECKPOINT CONFIG OUT
                            Import a T5X checkpoint as a run that can be resumed.

adapt models
  adapt merge RUN OUT       Make a complete run of an adapter run and its base.
  adapt export RUN OUT      Export LoRA or a prefix to a directory of PEFT, ReFT to one of pyreft.
  adapt import DIR OUT      Import LoRA or a prefix from PEFT, ReFT from pyreft.
  prune RUN OUT --layers 2  Drop the layers that change the residual stream least.

prepare data
  data prepare              Tokenize text or conversations into a token store.
  data import               Make a token store from token files of nanoGPT or Megatron-LM.
  data materialize          Write a seqio Task or Mixture to a token store.
  data verify STORE         Check every byte of a token store against its manifest.
  data show STORE           Print documents of a token store and which tokens are predicted.

CONFIG is a Python file, or the name of a config that comes with paxlike, such as `tiny`. RUN is a
run directory. `paxlike COMMAND --help` lists a command's flags.
"""

# Errors of the machine rather than the program: reported as one message.
_ENVIRONMENT_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
)


COMMANDS = {
    "train": ("run", "train_command"),
    "eval": ("run", "evaluate_command"),
    "generate": ("run", "generate_command"),
    "pack": ("run", "pack_command"),
    "serve": ("run", "serve_command"),
    "info": ("analysis", "info_command"),
    "convert to-hf": ("convert", "to_hf"),
    "convert from-hf": ("convert", "from_hf"),
    "convert to-t5x": ("convert", "to_t5x"),
    "convert from-t5x": ("convert", "from_t5x"),
    "adapt merge": ("adapt", "merge_adapter"),
    "adapt export": ("adapt", "export_adapter"),
    "adapt import": ("adapt", "import_adapter"),
    "prune": ("prune", "prune_command"),
    "report": ("analysis", "report_command"),
    "plan": ("analysis", "plan_command"),
    "data prepare": ("data", "prepare_data"),
    "data import": ("data", "import_data"),
    "data materialize": ("data", "materialize_data"),
    "data verify": ("data", "verify_data"),
    "data show": ("data", "show_data"),
}
"""Command -> its module in `commands/` and its function, which takes the remaining arguments."""


def console() -> None:
    """Runs `main` as a program: flushes its output and ends the process immediately.

    Python's normal exit stops library threads, such as prefetching, inside C++ code, which can
    abort a program that has finished.
    """
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Exit codes: 0 success, 1 a check failed, 2 a user error, 3 another process of the job failed,
    130 or 143 stopped by SIGINT or SIGTERM (`train` has saved a checkpoint).
    """
    arguments = sys.argv[1:]
    try:
        _dispatch(arguments)
    except SaveError as error:
        print(f"paxlike: {error}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(2)
    except UserError as error:
        _fail(str(error))
    except JobError as error:
        _fail(str(error), 3)
    except OSError as error:
        if error.errno not in _ENVIRONMENT_ERRORS:
            raise
        _fail(
            f"{error.strerror}: {error.filename or 'while writing'}. Files written "
            "before are unchanged."
        )
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, code: int = 2) -> None:
    print(f"paxlike: {message}", file=sys.stderr, flush=True)
    runtime = sys.modules.get("paxlike.parallel.runtime")
    if runtime and runtime.client():
        # A normal exit would wait for processes that may have died.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return
    if arguments[0] == "--version":
        from paxlike import __version__

        print(__version__)
        return
    words = 2 if arguments[0] in ("data", "convert", "adapt") else 1
    command = " ".join(arguments[:words])
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        raise UserError(
            f"unknown command {command!r}."
            + (f" Did you mean {near[0]!r}?" if near else "")
            + f"\n\n{HELP}"
        )
    module, function = COMMANDS[command]
    getattr(importlib.import_module(f"paxlike.commands.{module}"), function)(arguments[words:])
