"""A process that does system calls below one directory, on requests over a pipe.

It imports only the standard library, so that a dozen of them start quickly. A request is a
pickled tuple (operation, arguments), an answer a :class:`Result`. An actor on a mount and one
on a local directory must give the same answers.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import pickle
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

REPOSITORY = Path(__file__).parents[2]
LONG_AGO_S = 1_500_000_000
"""Earlier times were set by utimensat(2); later ones are the clock's during the test."""
_END_S = 20.0
_BLOCK_BYTES = 64 * 1024


class Result(NamedTuple):
    """The result of a system call.

    Attributes:
        error: name of the errno, empty on success.
        value: the return value.
    """

    error: str = ""
    value: Any = None


class Status(NamedTuple):
    """The fields of stat(2) that are the same on every file system.

    Attributes:
        kind: ``file``, ``directory`` or ``link``.
        mode: permission bits.
        size_bytes: of files and links; 0 for directories.
        mtime_ns: if it was set (before :data:`LONG_AGO_S`), else 0.
    """

    kind: str
    mode: int
    size_bytes: int
    mtime_ns: int


class Entry(NamedTuple):
    """One path of a tree: its status, and a file's SHA-256 or a link's target."""

    status: Status
    content: str


def pattern(seed: int, size_bytes: int) -> bytes:
    """Bytes that depend on the arguments only."""
    return random.Random(seed).randbytes(size_bytes)


class Actor:
    """The parent's end. A context manager; the process ends with the block.

    Args:
        directory: the base of relative paths. It is not the process's working directory, so
            that it can be unmounted.
    """

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            # Not -m: the pickled classes would belong to `__main__`.
            [sys.executable, "-c", f"from {__name__} import main; main()", str(directory)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __call__(self, operation: str, *arguments: Any) -> Result:
        """Do one operation of this module, by its name."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((operation, arguments), self._process.stdin)
        self._process.stdin.flush()
        result: Result = pickle.load(self._process.stdout)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class _Operations:
    """The child's end: one method for each operation."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._descriptors: dict[int, int] = {}
        self._streams: dict[int, Iterator[os.DirEntry[str]]] = {}

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    # --- names --------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def symlink(self, target: str, path: str) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: str) -> str:
        return os.readlink(self._at(path))

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    # --- attributes -----------------------------------------------------------------------

    def lstat(self, path: str) -> Status:
        return status(os.lstat(self._at(path)))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def utimens(self, path: str, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def truncate(self, path: str, size_bytes: int) -> None:
        os.truncate(self._at(path), size_bytes)

    # --- open files -----------------------------------------------------------------------

    def open(self, number: int, path: str, flags: int, mode: int) -> None:
        self._descriptors[number] = os.open(self._at(path), flags | os.O_CLOEXEC, mode)

    def close(self, number: int) -> None:
        os.close(self._descriptors.pop(number))

    def close_all(self) -> None:
        self._streams.clear()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def fstat(self, number: int) -> Status:
        return status(os.fstat(self._descriptors[number]))

    def write(self, number: int, seed: int, size_bytes: int) -> int:
        return os.write(self._descriptors[number], pattern(seed, size_bytes))

    def write_much(self, number: int, seed: int, blocks: int) -> None:
        block = bytearray(pattern(seed, _BLOCK_BYTES))
        for place in range(blocks):
            block[:8] = place.to_bytes(8, "big")
            _write_all(self._descriptors[number], block)

    def pwrite(self, number: int, seed: int, size_bytes: int, offset: int) -> int:
        return os.pwrite(self._descriptors[number], pattern(seed, size_bytes), offset)

    def seek(self, number: int, offset: int, whence: int) -> int:
        return os.lseek(self._descriptors[number], offset, whence)

    def read(self, number: int, size_bytes: int) -> bytes:
        return os.read(self._descriptors[number], size_bytes)

    def pread(self, number: int, size_bytes: int, offset: int) -> bytes:
        return os.pread(self._descriptors[number], size_bytes, offset)

    def ftruncate(self, number: int, size_bytes: int) -> None:
        os.ftruncate(self._descriptors[number], size_bytes)

    def fsync(self, number: int) -> None:
        os.fsync(self._descriptors[number])

    def map_write(self, number: int, seed: int, size_bytes: int, place: float) -> int:
        """Write through a shared map and msync(2); ``place`` is a fraction of the file."""
        with self._mapped(number, mmap.PROT_READ | mmap.PROT_WRITE) as (mapped, size):
            size_bytes = min(size_bytes, size)
            offset = int(place * (size - size_bytes))
            mapped[offset : offset + size_bytes] = pattern(seed, size_bytes)
            mapped.flush()
        return size_bytes

    def map_read(self, number: int) -> str:
        """SHA-256 of the file, read through a map."""
        with self._mapped(number, mmap.PROT_READ) as (mapped, _size):
            return hashlib.sha256(mapped).hexdigest()

    def _mapped(self, number: int, protection: int) -> _Map:
        descriptor = self._descriptors[number]
        # Not fstat, which fails for a nameless file on libfuse (SEMANTICS.md, T3).
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        os.lseek(descriptor, before, os.SEEK_SET)
        return _Map(descriptor, size, protection)

    def is_nameless(self, number: int) -> bool:
        """Whether the open file has no name any more."""
        return os.fstat(self._descriptors[number]).st_nlink == 0

    # --- directories that are being read ----------------------------------------------------

    def opendir(self, number: int, path: str) -> None:
        self._streams[number] = os.scandir(self._at(path))

    def readdir(self, number: int, count: int) -> list[str]:
        """The next ``count`` names; fewer at the end only."""
        stream = self._streams[number]
        return [line.name for _, line in zip(range(count), stream, strict=False)]

    def closedir(self, number: int) -> None:
        del self._streams[number]

    # --- everything -------------------------------------------------------------------------

    def tree(self, path: str) -> dict[str, Entry]:
        """Everything below a path."""
        return tree(Path(self._at(path)))


class _Map:
    """A shared map of a whole file, which may be empty."""

    def __init__(self, descriptor: int, size: int, protection: int) -> None:
        if size == 0:
            raise OSError(errno.EINVAL, "mmap(2) of no bytes")
        self._size = size
        self._mapped = mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection)

    def __enter__(self) -> tuple[mmap.mmap, int]:
        return self._mapped, self._size

    def __exit__(self, *_: object) -> None:
        self._mapped.close()


def status(found: os.stat_result) -> Status:
    """The comparable part of stat(2)."""
    kind = {stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}.get(stat.S_IFMT(found.st_mode), "file")
    mtime_ns = found.st_mtime_ns if found.st_mtime_ns < LONG_AGO_S * 10**9 else 0
    size_bytes = 0 if kind == "directory" else found.st_size
    return Status(kind, stat.S_IMODE(found.st_mode), size_bytes, mtime_ns)


def tree(root: Path) -> dict[str, Entry]:
    """Everything below a directory, by relative path."""
    found = {}
    for folder, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(folder, name)
            entry = status(path.lstat())
            content = ""
            if entry.kind == "link":
                content = os.readlink(path)
            elif entry.kind == "file":
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(root))] = Entry(entry, content)
    return found


def _write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main() -> None:
    """Serve until standard input ends."""
    operations = _Operations(sys.argv[1])
    while True:
        try:
            name, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        method: Callable[..., Any] = getattr(operations, name)
        try:
            answer = Result(value=method(*arguments))
        except OSError as error:
            answer = Result(errno.errorcode[error.errno or 0])
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
