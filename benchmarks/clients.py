"""A program that calls stat or open on files of a mount as fast as one process can.

``python -m benchmarks.clients lookups|opens DIRECTORY FIRST COUNT`` does COUNT operations
on the files ``NNNNN`` of DIRECTORY, from number FIRST on. Names are relative to the
directory's descriptor, so that each operation resolves one path component. It prints
"ready", waits for a line on standard input, does the operations and prints "done": the
interpreter's start is not measured.
"""

from __future__ import annotations

import os
import sys


def _look_up(directory: int, names: list[str]) -> None:
    for name in names:
        os.stat(name, dir_fd=directory)


def _open(directory: int, names: list[str]) -> None:
    for name in names:
        os.close(os.open(name, os.O_RDONLY, dir_fd=directory))


_ACTIONS = {"lookups": _look_up, "opens": _open}


def _main() -> None:
    action, directory, first, count = sys.argv[1:]
    names = [f"{number:05d}" for number in range(int(first), int(first) + int(count))]
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    print("ready", flush=True)
    sys.stdin.readline()
    _ACTIONS[action](descriptor, names)
    print("done", flush=True)


if __name__ == "__main__":
    _main()
