"""Writing workloads: ``python -m tests.writing.writers WORKLOAD DIRECTORY``.

Each does at least one round, until standard input has a line or ends. Then it prints, as JSON,
the number of rounds, and path to SHA-256 of the content that was written. An error ends it
with a traceback.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import select
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from sidecar.units import KIB, MIB

Contents = dict[str, bytes]


def sequential(directory: Path, rounds: Iterator[int]) -> Contents:
    """Overwrite a file of three parts, each time with one descriptor."""
    content = b""
    for number in rounds:
        content = random.Random(number).randbytes(64 * KIB) * 192
        with (directory / "large").open("wb", buffering=0) as file:
            _write_all(file.fileno(), content)
    return {"large": content}


def append(directory: Path, rounds: Iterator[int]) -> Contents:
    """Append to a log that stays open, with fsync now and then."""
    content = bytearray()
    descriptor = os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in rounds:
        for line in range(20):
            text = f"{number} {line} {'x' * (number % 50)}\n".encode()
            _write_all(descriptor, text)
            content += text
        if number % 10 == 0:
            os.fsync(descriptor)
    os.close(descriptor)
    return {"log": bytes(content)}


def growing(directory: Path, rounds: Iterator[int]) -> Contents:
    """Save a small file that grows beyond the smallest part, and truncate it."""
    content = bytearray()
    descriptor = os.open(directory / "grown", os.O_WRONLY | os.O_CREAT, 0o644)
    for number in rounds:
        choose = random.Random(number)
        data = choose.randbytes(choose.randrange(1, 4 * MIB))
        os.lseek(descriptor, len(content), os.SEEK_SET)
        _write_all(descriptor, data)
        content += data
        if len(content) > 40 * MIB:
            del content[choose.randrange(MIB) :]
            os.ftruncate(descriptor, len(content))
        os.fsync(descriptor)
    os.close(descriptor)
    return {"grown": bytes(content)}


def at_random(directory: Path, rounds: Iterator[int]) -> Contents:
    """Open with `r+`, overwrite, make holes, truncate, close; repeated."""
    content = bytearray()
    (directory / "file").write_bytes(b"")
    for number in rounds:
        choose = random.Random(number)
        with (directory / "file").open("r+b", buffering=0) as file:
            for _ in range(10):
                offset, data = choose.randrange(MIB), choose.randbytes(choose.randrange(20_000))
                assert os.pwrite(file.fileno(), data, offset) == len(data)
                if data:
                    content += bytes(max(0, offset - len(content)))
                    content[offset : offset + len(data)] = data
            size = choose.randrange(MIB)
            os.ftruncate(file.fileno(), size)
            content = content[:size].ljust(size, b"\0")
    return {"file": bytes(content)}


def mapped(directory: Path, rounds: Iterator[int]) -> Contents:
    """Write through a shared map, with msync in each round."""
    content = bytearray(MIB)
    (directory / "map").write_bytes(content)
    descriptor = os.open(directory / "map", os.O_RDWR)
    with mmap.mmap(descriptor, MIB) as shared:
        for number in rounds:
            choose = random.Random(number)
            offset, data = choose.randrange(MIB // 2), choose.randbytes(choose.randrange(100_000))
            shared[offset : offset + len(data)] = data
            content[offset : offset + len(data)] = data
            shared.flush()
    os.close(descriptor)
    return {"map": bytes(content)}


def small_files(directory: Path, rounds: Iterator[int]) -> Contents:
    """Many small files, each created, written and closed."""
    contents = {}
    for number in rounds:
        data = random.Random(number).randbytes(number % 9000)
        (directory / f"{number:06d}").write_bytes(data)
        contents[f"{number:06d}"] = data
    return contents


def save_by_rename(directory: Path, rounds: Iterator[int]) -> Contents:
    """Save as libraries do: temporary name, fsync, rename over the old file."""
    content = b""
    for number in rounds:
        content = random.Random(number).randbytes(100_000)
        with (directory / "model.tmp").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        (directory / "model.tmp").replace(directory / "model")
        assert (directory / "model").read_bytes() == content
    return {"model": content}


def names(directory: Path, rounds: Iterator[int]) -> Contents:
    """Create and remove directories and files."""
    for number in rounds:
        inner = directory / f"d{number}"
        inner.mkdir()
        with (inner / "new").open("xb") as file:
            file.write(b"x")
        (inner / "new").rename(inner / "other")
        assert os.listdir(inner) == ["other"]
        (inner / "other").unlink()
        inner.rmdir()
    return {}


def database(directory: Path, rounds: Iterator[int]) -> Contents:
    """SQLite with its own journal; ten rows a round."""
    base = sqlite3.connect(directory / "base.db")
    base.execute("create table t (x integer)")
    for number in rounds:
        with base:
            base.executemany("insert into t values (?)", [(number,)] * 10)
    base.close()
    return {}


WORKLOADS: dict[str, Callable[[Path, Iterator[int]], Contents]] = {
    workload.__name__: workload
    for workload in (
        sequential,
        append,
        growing,
        at_random,
        mapped,
        small_files,
        save_by_rename,
        names,
        database,
    )
}


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[: 256 * KIB]) :]


def main() -> None:
    """Run one workload."""
    done = 0

    def rounds() -> Iterator[int]:
        nonlocal done
        while done == 0 or not select.select([sys.stdin], [], [], 0)[0]:
            done += 1
            yield done

    contents = WORKLOADS[sys.argv[1]](Path(sys.argv[2]), rounds())
    digests = {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
    print(json.dumps((done, digests)))


if __name__ == "__main__":
    main()
