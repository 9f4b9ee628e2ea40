"""The command line: a verb, what it works on, and flags. A verb's module is imported when it is asked for."""

import difflib
import errno
import importlib
import os
import sys

from paxlike.config import JobError, SaveError, UserError

HELP = """\
usage: paxlike VERB …

  train CONFIG [--run-dir DIR] [--fake-devices N] [--model.layers 4 …]
                        train; the same command on the same run folder goes on where it stopped
  eval RUN              loss of a run's newest checkpoint on its validation split; with --tasks, the lm-evaluation-harness's tasks;
                        with --seqio-mixture, the metrics of seqio's
  generate RUN PROMPT   text from a run's newest checkpoint, or from a packed model
  pack RUN FILE         a run's 1-bit or 2-bit weights, packed into one file (safetensors)
  convert to-hf RUN OUT     a run as a folder for Hugging Face's AutoModelForCausalLM and AutoTokenizer
  convert from-hf DIR OUT   such a folder (Cohere or Llama) as a run
  convert to-t5x RUN OUT    a run as a T5X checkpoint
  convert from-t5x CHECKPOINT CONFIG OUT
                        a T5X checkpoint as a run of a config, which goes on training
  serve RUN             an OpenAI-compatible HTTP endpoint
  info CONFIG           parameters, FLOPs, memory and sharding of a config, without running it
  report RUN [RUN …]    what runs did: speed, MFU and HFU, goodput, memory; a table, and a page with plots
  plan CONFIG --topology v4:4x4x4
                        compile the train step for a cluster that is not here: memory, collectives, speed
  data prepare          texts into a token store to train on
  data materialise      a Task or Mixture of seqio into a token store, once
  data verify STORE     check every byte of a token store against its manifest

`paxlike VERB --help` lists a verb's flags. CONFIG is a Python file such as configs/tiny.py, RUN a run folder.
"""

# What the machine, not the program, is to blame for: shown as one message.
_ENVIRONMENT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


VERBS = {
    "train": ("run", "train_verb"),
    "eval": ("run", "evaluate_verb"),
    "generate": ("run", "generate_verb"),
    "pack": ("run", "pack_verb"),
    "serve": ("run", "serve_verb"),
    "info": ("tell", "info_verb"),
    "convert to-hf": ("convert", "to_hf"),
    "convert from-hf": ("convert", "from_hf"),
    "convert to-t5x": ("convert", "to_t5x"),
    "convert from-t5x": ("convert", "from_t5x"),
    "report": ("tell", "report_verb"),
    "plan": ("tell", "plan_verb"),
    "data prepare": ("data", "prepare_data"),
    "data materialise": ("data", "materialise_data"),
    "data verify": ("data", "verify_data"),
}
"""Verb -> the module in `verbs/` and its function, which takes the arguments after the verb."""


def console() -> None:
    """`main` as a program of its own: what it wrote is flushed, and the process ends at once.

    Python's own end stops threads of libraries (reading ahead, for example) inside of C++, which may abort a program that has done all.
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
    """Exit codes: 0 done, 1 a check failed, 2 something the user can mend, 3 another process of the job failed or is lost,
    130 or 143 stopped by SIGINT or SIGTERM (`train` has saved)."""
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
        _fail(f"{error.strerror}: {error.filename or 'while writing'}. What was written before is as it was.")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, code: int = 2) -> None:
    print(f"paxlike: {message}", file=sys.stderr, flush=True)
    runtime = sys.modules.get("paxlike.parallel.runtime")
    if runtime and runtime.client():
        # A usual exit would wait for processes that may never come.
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
    words = 2 if arguments[0] in ("data", "convert") else 1
    verb = " ".join(arguments[:words])
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise UserError(
            f"there is no verb {verb!r}." + (f" Perhaps you meant {near[0]!r}." if near else "") + f"\n\n{HELP}"
        )
    module, function = VERBS[verb]
    getattr(importlib.import_module(f"paxlike.verbs.{module}"), function)(arguments[words:])
