"""fio: writes with verification, by direct I/O, AIO and mmap."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tests.soak_tools.tools import Examiner
from tests.writing.self_verifying import ENGINES, verify_again, write_and_verify

LONGEST_S = 300.0
SIZE_MIB = 24


def test_every_engine(examiner: Examiner) -> None:
    def run(directory: Path, cases: Collection[str]) -> dict[str, str]:
        found = {}
        for engine in cases or ENGINES:
            command = write_and_verify(directory / engine, ENGINES[engine], SIZE_MIB)
            ended = examiner.run(*command, cwd=directory, timeout_s=LONGEST_S)
            found[engine] = ended.output if ended.status else ""
        return found

    examiner.examine(run)
    examiner.place.restart()
    for engine in ENGINES:
        path = examiner.directory / engine
        command = verify_again(path, ENGINES[engine], SIZE_MIB)
        ended = examiner.run(*command, cwd=examiner.directory, timeout_s=LONGEST_S)
        assert ended.status == 0, ended.output
