"""A program that reads files of a mount at so little cost that the mount is what is measured.

Each thread reuses one buffer (preadv(2), readv(2)); threads are spread over a few processes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import crew, programs
from benchmarks.crew import Outcome
from sidecar.units import MIB

_THREADS_PER_PROCESS = 4
_MOST_OVER_S = 120.0


def blocks(
    path: Path, offsets: Sequence[int], block_bytes: int, *, threads: int, duration_s: float
) -> Outcome:
    """Read blocks of one file, one descriptor for each thread. Raises BenchFailure."""
    return _run(
        {"path": str(path), "items": offsets, "block_bytes": block_bytes},
        threads=threads,
        duration_s=duration_s,
    )


def files(folder: Path, names: Sequence[str], *, threads: int) -> Outcome:
    """Open, read to the end, and close files of one folder. Raises BenchFailure."""
    return _run({"path": str(folder), "items": names}, threads=threads, duration_s=None)


def _processes_for(threads: int) -> int:
    """How many processes to spread the threads over."""
    return max(1, threads // _THREADS_PER_PROCESS)


def _run(job: dict[str, object], *, threads: int, duration_s: float | None) -> Outcome:
    settings = {
        "threads": threads,
        "processes": _processes_for(threads),
        "duration_s": duration_s,
    }
    # If the reader says how long it will read, a mount that hangs is noticed soon.
    timeout_s = programs.TIMEOUT_S if duration_s is None else duration_s + _MOST_OVER_S
    return Outcome(**programs.run("benchmarks.readers", {**job, **settings}, timeout_s))


def _block_reader(path: str, block_bytes: int) -> Callable[[int], int]:
    descriptor = os.open(path, os.O_RDONLY)
    buffers = [bytearray(block_bytes)]

    def read(offset: int) -> int:
        count = os.preadv(descriptor, buffers, offset)
        if count != block_bytes:
            raise OSError(f"{count} bytes at {offset}, not {block_bytes}")
        return count

    return read


def file_reader(folder: str) -> Callable[[str], int]:
    """A function that reads one file of a folder, as cat(1) does, and returns its size in bytes."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    buffers = [bytearray(MIB)]

    def read(name: str) -> int:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=directory)
        try:
            total = 0
            while count := os.readv(descriptor, buffers):
                total += count
        finally:
            os.close(descriptor)
        return total

    return read


def _main() -> None:
    job = json.load(sys.stdin)
    settings = {key: job[key] for key in ("threads", "processes", "duration_s")}
    try:
        if "block_bytes" in job:
            outcome = crew.run(
                lambda: _block_reader(job["path"], job["block_bytes"]), job["items"], **settings
            )
        else:
            outcome = crew.run(lambda: file_reader(job["path"]), job["items"], **settings)
    except crew.CrewFailure as failure:
        sys.exit(str(failure))
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    _main()
