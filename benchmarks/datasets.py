"""The objects in the bucket, and the check that a mount returns their bytes."""

# ruff: noqa: D102 - the protocol documents the methods.

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.failure import BenchFailure
from benchmarks.servers import read_all, write_random

_SAMPLES = 16
_SAMPLE_BYTES = 64 * 1024


class Dataset(Protocol):
    """Objects below a folder of the bucket. Workloads with equal data sets share them."""

    def seed(self, data: Path) -> None:
        """Create the objects that are missing."""

    def warm(self, data: Path) -> None:
        """Read the server's files into the page cache."""


@dataclass(frozen=True, slots=True)
class LargeObjects:
    """Objects of random bytes, ``size_bytes`` each."""

    size_bytes: int
    count: int = 1

    @property
    def keys(self) -> list[str]:
        """Below the data set's root."""
        return [f"large/{self.size_bytes}-{number}.bin" for number in range(self.count)]

    def seed(self, data: Path) -> None:
        for key in self.keys:
            if not (data / key).exists():
                write_random(data / key, self.size_bytes)

    def warm(self, data: Path) -> None:
        for key in self.keys:
            read_all(data / key)


@dataclass(frozen=True, slots=True)
class SmallObjects:
    """Many objects of random bytes in one folder, ``size_bytes`` each."""

    count: int
    size_bytes: int = 110_000
    folder: str = "small"

    @property
    def names(self) -> list[str]:
        """Below the folder, in a random order that is the same in each run."""
        names = [f"{number:05d}.bin" for number in range(self.count)]
        random.Random(self.count).shuffle(names)
        return names

    def seed(self, data: Path) -> None:
        for name in self.names:
            if not (data / self.folder / name).exists():
                write_random(data / self.folder / name, self.size_bytes)

    def warm(self, data: Path) -> None:
        for name in self.names:
            read_all(data / self.folder / name)


@dataclass(frozen=True, slots=True)
class Names:
    """``count`` objects of one byte, spread over ``directories``, for listings."""

    count: int
    directories: int

    @property
    def folder(self) -> str:
        """Below the data set's root."""
        return f"names-{self.directories}"

    @property
    def prefixes(self) -> list[str]:
        """The directories, below the folder, each ending in ``/``."""
        return [f"{number:03d}/" for number in range(self.directories)]

    def seed(self, data: Path) -> None:
        each = self.count // self.directories
        for prefix in self.prefixes:
            directory = data / self.folder / prefix
            if not directory.exists():
                directory.mkdir(parents=True)
                for number in range(each):
                    (directory / f"{number:06d}.txt").write_bytes(b"\n")

    def warm(self, data: Path) -> None:
        """Do nothing: the server has its directories in memory, and contents are not read."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """An empty bucket, for workloads that start their own servers."""

    def seed(self, data: Path) -> None:
        """Create the bucket only."""
        data.mkdir(parents=True, exist_ok=True)

    def warm(self, data: Path) -> None:
        """Do nothing."""


def samples(size_bytes: int) -> list[tuple[int, int]]:
    """Offset and length of what is compared of an object: start, end, and some at random."""
    last = max(0, size_bytes - _SAMPLE_BYTES)
    offsets = [0, last, *(random.randint(0, last) for _ in range(_SAMPLES))]
    return [(offset, min(_SAMPLE_BYTES, size_bytes - offset)) for offset in offsets]


def require_equal(path: Path, original: Path) -> None:
    """Compare size, start, end and random samples: a fast answer must also be right.

    Called after the timed part: it reads the pages that the timed reader got.

    Raises:
        BenchFailure: they differ.
    """
    size_bytes = original.stat().st_size
    if path.stat().st_size != size_bytes:
        raise BenchFailure(f"{path.name}: size {path.stat().st_size}, not {size_bytes}")
    with path.open("rb", buffering=0) as copy, original.open("rb", buffering=0) as source:
        for offset, length in samples(size_bytes):
            if os.pread(copy.fileno(), length, offset) != os.pread(source.fileno(), length, offset):
                raise BenchFailure(f"{path.name}: wrong bytes in the {length} from {offset}")
