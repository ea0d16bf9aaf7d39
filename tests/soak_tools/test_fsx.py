"""fsx: random reads, writes, maps and truncations of one file, with every byte compared.

The Rust crate. O_DIRECT and AIO, which it lacks, are in tests/writing/test_exerciser.py.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from tests.soak_tools.tools import Examiner

LONGEST_S = 900.0
OPERATIONS = 5_000
SEEDS = (1, 2)
# Operations that save are rare, since each save costs requests. Holes cannot be punched (X4).
CONFIGURATION = """\
flen = {flen}
nomsyncafterwrite = {lazy}

[opsize]
max = {longest}

[weights]
close_open = 0.5
invalidate = 2
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 5
fsync = 0.3
fdatasync = 0.3
posix_fallocate = 1
sendfile = 2
posix_fadvise = 2
copy_file_range = 2
"""
SIZES = {"small": (262_144, 65_536), "of several parts": (24_000_000, 2_000_000)}


@pytest.mark.parametrize("size", SIZES)
def test_every_byte(examiner: Examiner, size: str) -> None:
    program = examiner.program("fsx")
    flen, longest = SIZES[size]

    def run(directory: Path, cases: Collection[str]) -> dict[str, str]:
        found = {}
        for seed in SEEDS:
            case = f"{size}, seed {seed}"
            if cases and case not in cases:
                continue
            settings = program.with_name(f"fsx-{seed}.toml")
            lazy = "true" if seed % 2 else "false"
            settings.write_text(CONFIGURATION.format(flen=flen, longest=longest, lazy=lazy))
            path = directory / f"file-{seed}"
            count = OPERATIONS if flen < 1_000_000 else OPERATIONS // 20
            how = ["-f", settings, "-N", str(count), "-S", str(seed), "-P", directory]
            ended = examiner.run(program, *how, path, cwd=directory, timeout_s=LONGEST_S)
            found[case] = ended.output if ended.status else ""
        return found

    examiner.examine(run)
    kept = {path.name: path.read_bytes() for path in examiner.directory.iterdir()}
    assert len(kept) == len(SEEDS)
    assert examiner.place.objects(examiner.directory) == kept
