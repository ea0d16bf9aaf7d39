"""pjdfstest: about four hundred tests of errno, mode, owner and times of system calls.

The Rust crate, a rewrite of the suite that FreeBSD and others use.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from tests.soak_tools.tools import Examiner

LONGEST_S = 600.0
CONFIGURATION = """\
[features]
posix_fallocate = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"""
_LINE = re.compile(r"^(?P<case>\S+::\S+) +(?P<how>ok|skipped|FAILED)$", re.MULTILINE)


def test_every_call(examiner: Examiner) -> None:
    program = examiner.program("pjdfstest")
    settings = program.with_name("pjdfstest.toml")
    settings.write_text(CONFIGURATION)

    def run(directory: Path, cases: Collection[str]) -> dict[str, str]:
        # The second file system, for EXDEV, must be writable for every user.
        where = ["--path", directory, "--secondary-fs", "/dev/shm"]
        only = ["--exact", *(f"pjdfstest::tests::{case}" for case in cases)] if cases else []
        ended = examiner.run(
            program, "-c", settings, *where, *only, cwd=directory, timeout_s=LONGEST_S
        )
        found = results(ended.output)
        assert len(found) >= (len(cases) or 200), ended.output
        return found

    examiner.examine(run)


def results(output: str) -> dict[str, str]:
    """Each case that was run, to its failure message or ""."""
    lines = list(_LINE.finditer(output))
    ends = [line.start() for line in lines[1:]] + [len(output)]
    return {
        line["case"]: _said(output[line.end() : end]) if line["how"] == "FAILED" else ""
        for line, end in zip(lines, ends, strict=True)
        if line["how"] != "skipped"
    }


def _said(text: str) -> str:
    said = text.partition("\nSummary")[0].partition("Backtrace:")[0]
    return " ".join(said.split())
