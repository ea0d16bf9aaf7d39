"""bonnie++: a large file, rewritten and read at random; a thousand files created and deleted."""

from __future__ import annotations

import getpass
from collections.abc import Collection
from pathlib import Path

from tests.soak_tools.tools import Examiner

LONGEST_S = 900.0
FILE_MIB = 96
MEMORY_MIB = FILE_MIB // 2  # It requires a file of at least twice this size.
FILES = "1:20000:0:4"  # 1,024 files of up to 20,000 bytes in four directories


def test_rewriting_and_many_names(examiner: Examiner) -> None:
    def run(directory: Path, _cases: Collection[str]) -> dict[str, str]:
        # -f: skip the tests of single bytes; each is a FUSE request, together an hour.
        sizes = ["-f", "-s", f"{FILE_MIB}M", "-r", f"{MEMORY_MIB}M", "-n", FILES]
        # As root it requires the option -u.
        who = ["-u", getpass.getuser()] if examiner.is_root else []
        ended = examiner.run(
            "bonnie++", "-q", "-d", directory, *sizes, *who, cwd=directory, timeout_s=LONGEST_S
        )
        wrong = ended.status != 0 or "rror" in ended.output or "an't" in ended.output
        return {"whole": ended.output if wrong else ""}

    examiner.examine(run)
    assert list(examiner.directory.iterdir()) == []
