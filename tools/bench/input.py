"""Input: throughput of batches, their share of a step, and throughput of tokenization.

    python -m tools.bench.input [--size test] [--json FILE]

The token store holds the default corpus: the sources of the running Python. Reading is measured in
CPU seconds of the whole process, so additional threads are no gain, and with the files in the page
cache, so the program is measured and not the disk.
"""

import itertools
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
import sentencepiece

from paxlike.config import Config, DataConfig
from paxlike.data.bad_lines import ReadOptions
from paxlike.data.corpus import read_blocks
from paxlike.data.grain_source import TrainBatches
from paxlike.data.input_files import standard_library
from paxlike.data.prepare import PrepareConfig, prepare_files
from paxlike.data.source import open_data
from paxlike.data.store import Store
from paxlike.parallel.host_batches import local_rows
from paxlike.training.state import make_state
from paxlike.training.step import Program, on_mesh
from tools.bench import reference
from tools.bench.measure import Row, command_line, interleave


def rows(size: str) -> list[Row]:
    config = reference.config(size)
    store = open_data(config.data)
    with jax.set_mesh(reference.one_device()):
        return [*_reading(config, store, size), *_preparing(config.data, store, size)]


def _reading(config: Config, store: Store, size: str) -> list[Row]:
    source = TrainBatches(store, config.data, config.train)
    batches = 2000 if size == "full" else 20
    tokens = config.train.batch_size * config.data.sequence_length
    per_step = local_rows(config.train.batch_size, 1)
    pipeline = source.batches(0, lambda _: per_step)
    numbers = itertools.count()

    def read() -> None:
        for _ in range(batches):
            source.read_batch(next(numbers))

    def through_pipeline() -> None:
        for batch in itertools.islice(pipeline, batches):
            placed = on_mesh(batch, per_step, config.train.batch_size, 1)
        jax.block_until_ready(placed)

    turns = 7 if size == "full" else 1
    timings = interleave({"read": read, "pipeline": through_pipeline}, turns)
    step = _step_seconds(config, next(pipeline), per_step, 5 if size == "full" else 1)
    pipeline.close()
    seconds = timings["pipeline"].cpu / batches
    rate = batches * tokens / timings["read"].cpu
    return [
        Row(
            "token store, batches made by one core",
            rate / 1e6,
            "M tokens/s",
            goal="≥ 5 M tokens/s",
            reached=rate >= 5e6,
            note=f"batches of {config.train.batch_size} × {config.data.sequence_length}",
        ),
        Row(
            "the same with prefetching and placement on the device",
            tokens / seconds / 1e6,
            "M tokens/s",
            note="per CPU second",
        ),
        Row(
            "all of input, CPU time per step",
            1e3 * seconds,
            "ms",
            "the reference step's wall time",
            1e3 * step,
            "under 1 % of the step",
            seconds < 0.01 * step,
        ),
    ]


def _step_seconds(config: Config, batch: object, per_step: np.ndarray, turns: int) -> float:
    """Wall seconds of a training step."""
    program = Program.of(config, reference.numerics(config))
    state = [make_state(config, program.numerics, program.optimizer)]
    placed = on_mesh(batch, per_step, config.train.batch_size, 1)

    def step() -> None:
        state[0], metrics = program.train_step(state[0], placed)
        jax.block_until_ready((state[0], metrics))

    return interleave({"step": step}, turns)["step"].wall


def _preparing(data: DataConfig, store: Store, size: str) -> list[Row]:
    """`paxlike data prepare` compared with the tokenizer's library alone.

    The library has the text in memory and writes nothing.
    """
    files = standard_library() if size == "full" else standard_library()[:5]
    model_file = str(store.folder / "tokenizer.model")
    documents = [
        piece.text
        for path in files
        for block in read_blocks(path)
        for piece in block.pieces(ReadOptions(errors="replace"))
    ]
    megabytes = sum(len(text.encode()) for text in documents) / 1e6
    processor = sentencepiece.SentencePieceProcessor(model_file=model_file)
    cores = len(os.sched_getaffinity(0))

    with tempfile.TemporaryDirectory() as folder:
        outputs = (Path(folder) / f"store-{number}" for number in itertools.count())

        def prepare(workers: int) -> None:
            config = PrepareConfig(
                input=("the standard library",),
                output=str(next(outputs)),
                tokenizer_vocab=data.tokenizer_vocab,
                tokenizer_model=model_file,
                errors="replace",
                workers=workers,
            )
            prepare_files(files, config)

        workloads = {
            "all": lambda: prepare(0),
            "one": lambda: prepare(1),
            "library": lambda: [processor.encode(text, out_type="numpy") for text in documents],
            "library, threads": lambda: processor.encode(documents, num_threads=cores),
        }
        turns, warmup = (5, 1) if size == "full" else (1, 0)
        timings = interleave(workloads, turns, warmup)
    rate = {name: megabytes / timing.wall for name, timing in timings.items()}
    busy = timings["all"].cpu / timings["all"].wall
    return [
        Row(
            f"data prepare, {cores} cores",
            rate["all"],
            "MB/s",
            f"SentencePiece alone, {cores} threads",
            rate["library, threads"],
            note=f"{megabytes:.1f} MB of text in {len(documents)} documents; {busy:.2f} cores busy",
        ),
        Row(
            "data prepare, 1 core",
            rate["one"],
            "MB/s",
            "SentencePiece alone, 1 thread",
            rate["library"],
        ),
        Row(
            "data prepare, all cores",
            rate["all"],
            "MB/s",
            "with one worker",
            rate["one"],
            f"uses {cores} cores",
            rate["all"] / rate["one"] > 0.75 * cores,
        ),
    ]


if __name__ == "__main__":
    command_line("Input", __doc__, rows)
