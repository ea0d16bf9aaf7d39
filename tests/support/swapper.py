"""A process that renames what others make, as fast as it can, as an experiment may do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

_LOOP = """
import os, sys
place, theirs = sys.argv[1:]
print("swapping", flush=True)
number = 0
while True:
    number += 1
    try:
        os.rename(place, f"{place}.{number}")
        os.rename(theirs, place)
        os.sched_yield()
        os.rename(place, theirs)
    except OSError:
        if not os.path.lexists(theirs):
            try: os.rename(place, theirs)
            except OSError: pass
"""


class Swapper:
    """Replaces whatever is made at ``place`` by ``theirs``, removes that again, and so on.

    What was made is kept, as ``place`` with a number after it.
    """

    def __init__(self, place: Path, theirs: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LOOP, str(place), str(theirs)], stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        self._process.stdout.readline()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        with self._process:
            pass
