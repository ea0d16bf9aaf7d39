"""A data loader with PyTorch's access pattern, without PyTorch.

As ``torch.utils.data.DataLoader(shuffle=True, num_workers=N, persistent_workers=True)``: a
main process shuffles the names for each epoch and keeps two batches queued for each worker;
forked workers read whole files and report on one queue. The bytes stay in the worker
(PyTorch passes them on in shared memory, which uses no file system).
"""

from __future__ import annotations

import json
import multiprocessing
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from benchmarks import programs, readers

WORKERS = 4
EPOCHS = 2
_BATCH = 32
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass over all files, from the first batch queued to the last result."""

    files: int
    size_bytes: int
    wall_s: float


def load(folder: Path, names: Sequence[str]) -> list[Epoch]:
    """Read the files of a folder in EPOCHS epochs with WORKERS workers. Raises BenchFailure."""
    epochs = programs.run("benchmarks.epochs", {"folder": str(folder), "names": list(names)})
    return [Epoch(**epoch) for epoch in epochs]


Batch = tuple[str, ...]
Result = tuple[int, int, int]
"""Worker, files, bytes."""


def _worker(
    number: int,
    folder: str,
    batches: SimpleQueue[Batch | None],
    results: SimpleQueue[Result | str],
) -> None:
    try:
        read = readers.file_reader(folder)
        while (batch := batches.get()) is not None:
            results.put((number, len(batch), sum(read(name) for name in batch)))
    except OSError as error:
        results.put(str(error))


def _epoch(
    names: list[str],
    queues: Sequence[SimpleQueue[Batch | None]],
    results: SimpleQueue[Result | str],
) -> Epoch:
    batches = [tuple(names[start : start + _BATCH]) for start in range(0, len(names), _BATCH)]
    left = len(batches)
    files = size_bytes = 0
    began_s = time.perf_counter()
    for turn in range(_AHEAD * len(queues)):
        if batches:
            queues[turn % len(queues)].put(batches.pop())
    while left:
        result = results.get()
        if isinstance(result, str):
            sys.exit(result)
        worker, count, size = result
        files, size_bytes, left = files + count, size_bytes + size, left - 1
        if batches:
            queues[worker].put(batches.pop())
    return Epoch(files, size_bytes, time.perf_counter() - began_s)


def _main() -> None:
    job = json.load(sys.stdin)
    context = multiprocessing.get_context("fork")
    results: SimpleQueue[Result | str] = context.SimpleQueue()
    queues: list[SimpleQueue[Batch | None]] = [context.SimpleQueue() for _ in range(WORKERS)]
    workers = [
        context.Process(target=_worker, args=(number, job["folder"], own, results), daemon=True)
        for number, own in enumerate(queues)
    ]
    for worker in workers:
        worker.start()
    order = random.Random(0)
    epochs = []
    for _ in range(EPOCHS):
        order.shuffle(job["names"])
        epochs.append(_epoch(job["names"], queues, results))
    for own in queues:
        own.put(None)
    for worker in workers:
        worker.join()
    json.dump([asdict(epoch) for epoch in epochs], sys.stdout)


if __name__ == "__main__":
    _main()
