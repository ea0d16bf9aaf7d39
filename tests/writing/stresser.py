"""One process of test_stress: ``python -m tests.writing.stresser DIRECTORY SEED OPERATIONS``.

It does random calls below a directory where other processes do the same. A call's errno must
be one of its manual page for names that another process may have created or removed.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.direct import BLOCK_BYTES, DirectFile

NAMES = ("a", "b", "c", "d")
LONGEST_BYTES = 300_000

_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_MADE = {errno.EEXIST, errno.EISDIR, *_GONE}
_RENAMED = {errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, *_GONE}


class Stresser:
    """The random calls of one process."""

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        self._own = root / f"of {seed}"
        self._random = random.Random(seed)
        self._calls: dict[Callable[[Path], None], tuple[int, set[int]]] = {
            self._write: (20, _MADE),
            self._append: (8, _MADE),
            self._read: (15, {errno.EISDIR, *_GONE}),
            self._truncate: (6, {errno.EISDIR, *_GONE}),
            self._map: (8, set()),
            self._write_directly: (4, {errno.EISDIR, *_GONE}),
            self._save: (2, {errno.EISDIR, *_GONE}),
            self._unlink: (8, {errno.EISDIR, *_GONE}),
            self._make_directory: (10, {errno.EEXIST, *_GONE}),
            self._remove_directory: (5, {errno.ENOTEMPTY, *_GONE}),
            self._rename: (8, _RENAMED),
            self._link: (4, {errno.EEXIST, *_GONE}),
            self._read_link: (3, {errno.EINVAL, *_GONE}),
            self._status: (10, _GONE),
            self._list: (6, _GONE),
            self._mode: (4, {errno.EISDIR, *_GONE}),
            self._times: (3, {errno.EISDIR, *_GONE}),
        }

    def run(self, operations: int) -> int:
        """Run this many calls; the number with an errno that a local disk never gives."""
        calls = list(self._calls)
        weights = [weight for weight, _ in self._calls.values()]
        wrong = 0
        for number in range(operations):
            call = self._random.choices(calls, weights)[0]
            path = self._path()
            try:
                call(path)
            except OSError as error:
                if error.errno not in self._calls[call][1]:
                    print(f"{number} {call.__name__} {path}: {error}", file=sys.stderr)
                    wrong += 1
        return wrong

    def _path(self) -> Path:
        return self._root.joinpath(
            *self._random.choices(NAMES, k=self._random.choice((1, 2, 2, 3)))
        )

    def _data(self) -> bytes:
        return self._random.randbytes(self._random.choice((0, 10, 5_000, 5_000, 100_000)))

    # --- files ---------------------------------------------------------------------------

    def _write(self, path: Path) -> None:
        flags = self._random.choice((0, os.O_TRUNC, os.O_EXCL, 0)) | os.O_CREAT | os.O_RDWR
        descriptor = os.open(path, flags, 0o644)
        try:
            for _ in range(self._random.randrange(1, 4)):
                os.pwrite(descriptor, self._data(), self._random.randrange(LONGEST_BYTES))
        finally:
            os.close(descriptor)

    def _append(self, path: Path) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            # Bounded: every process appends to this file.
            if os.lseek(descriptor, 0, os.SEEK_END) < LONGEST_BYTES:
                os.write(descriptor, self._data())
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.pread(descriptor, 50_000, self._random.randrange(LONGEST_BYTES))
            os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def _truncate(self, path: Path) -> None:
        os.truncate(path, self._random.choice((0, self._random.randrange(LONGEST_BYTES))))

    def _map(self, _path: Path) -> None:
        # A private file: one that others truncate rightly gives SIGBUS.
        descriptor = os.open(self._own, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            size = self._random.randrange(1, LONGEST_BYTES)
            os.ftruncate(descriptor, size)
            with mmap.mmap(descriptor, size) as mapped:
                place = self._random.randrange(size)
                data = self._data()[: size - place]
                mapped[place : place + len(data)] = data
        finally:
            os.close(descriptor)

    def _write_directly(self, path: Path) -> None:
        with DirectFile(path) as file:
            start = self._random.randrange(LONGEST_BYTES // BLOCK_BYTES) * BLOCK_BYTES
            file.write_many([(start, self._random.randbytes(2 * BLOCK_BYTES))])
            file.read(0, BLOCK_BYTES)

    def _save(self, path: Path) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    # --- names ---------------------------------------------------------------------------

    def _unlink(self, path: Path) -> None:
        os.unlink(path)

    def _make_directory(self, path: Path) -> None:
        os.mkdir(path)

    def _remove_directory(self, path: Path) -> None:
        os.rmdir(path)

    def _rename(self, path: Path) -> None:
        os.rename(path, self._path())

    def _link(self, path: Path) -> None:
        os.symlink(self._random.choice(NAMES), path)

    def _read_link(self, path: Path) -> None:
        os.readlink(path)

    def _status(self, path: Path) -> None:
        self._random.choice((os.stat, os.lstat))(path)

    def _list(self, path: Path) -> None:
        names = os.listdir(path)
        if len(names) != len(set(names)):
            raise OSError(errno.EIO, "a name twice")

    # --- attributes of files (another test is about directories': T, A1) ------------------------

    def _mode(self, path: Path) -> None:
        self._on_file(path, lambda found: os.fchmod(found, self._random.choice((0o600, 0o644))))

    def _times(self, path: Path) -> None:
        self._on_file(path, lambda found: os.utime(found, (10**9, 10**9)))

    def _on_file(self, path: Path, change: Callable[[int], None]) -> None:
        descriptor = os.open(path, os.O_WRONLY)
        try:
            change(descriptor)
        finally:
            os.close(descriptor)


def main() -> int:
    """Whether anything was wrong."""
    root, seed, operations = sys.argv[1:]
    return int(Stresser(Path(root), int(seed)).run(int(operations)) > 0)


if __name__ == "__main__":
    sys.exit(main())
