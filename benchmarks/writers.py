"""A program that writes to a mount: ``python -m benchmarks.writers ACTION SOURCE TARGET …``.

``file``: copy SOURCE to the file TARGET in steps of 1 MiB, then fsync and close.
``files COUNT SIZE_BYTES``: write and close COUNT files in the directory TARGET.
``checkpoints COUNT PAUSE_S``: save SOURCE COUNT times under one name in the directory TARGET,
as ML libraries do: temporary name, fsync, close, rename. Prints the seconds of each save.

It first prints a line, and begins when it gets one: an interpreter's start is no part of a write.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

STEP_BYTES = 1024 * 1024
CHECKPOINT = "last.ckpt"


def write_file(source: Path, target: Path) -> None:
    """Copy in steps through one buffer, then fsync."""
    buffer = memoryview(bytearray(STEP_BYTES))
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            writer.write(buffer[:count])
        os.fsync(writer.fileno())


def write_files(source: Path, target: Path, count: int, size_bytes: int) -> None:
    """Write files that all have the first bytes of the source."""
    with source.open("rb", buffering=0) as reader:
        data = reader.read(size_bytes)
    for number in range(count):
        (target / f"{number:05d}.bin").write_bytes(data)


def save_checkpoints(source: Path, target: Path, count: int, pause_s: float) -> None:
    """Save one checkpoint after another, with a pause in place of the training."""
    for number in range(count):
        if number:
            time.sleep(pause_s)
        began_s = time.perf_counter()
        temporary = target / f".{CHECKPOINT}.tmp"
        write_file(source, temporary)
        temporary.replace(target / CHECKPOINT)
        print(time.perf_counter() - began_s, flush=True)


def _main() -> None:
    action, source, target, *numbers = sys.argv[1:]
    print("started", flush=True)
    sys.stdin.readline()
    if action == "file":
        write_file(Path(source), Path(target))
    elif action == "files":
        write_files(Path(source), Path(target), int(numbers[0]), int(numbers[1]))
    else:
        save_checkpoints(Path(source), Path(target), int(numbers[0]), float(numbers[1]))


if __name__ == "__main__":
    _main()
