"""Commands of fio: random blocks with checksums, written and read back."""

from __future__ import annotations

from pathlib import Path

ENGINES = {
    "pwrite": ["--ioengine=psync"],
    "direct": ["--ioengine=psync", "--direct=1"],
    "aio": ["--ioengine=libaio", "--iodepth=16"],
    "aio-direct": ["--ioengine=libaio", "--iodepth=16", "--direct=1"],
    "map": ["--ioengine=mmap"],
    "threads": ["--ioengine=posixaio", "--iodepth=8"],
    "vectors": ["--ioengine=pvsync2"],
}
"""Name to options. The other modules' exercisers lack maps and AIO."""


def write_and_verify(path: Path, engine: list[str], size_mib: int) -> list[str]:
    """Write a whole file in random order, and read back parts of it meanwhile."""
    # After every thousand blocks some earlier ones are verified, and all of them at the end.
    return [*_job(path, engine, size_mib), "--verify_backlog=1000", "--fsync=4000"]


def verify_again(path: Path, engine: list[str], size_mib: int) -> list[str]:
    """Verify only, after :func:`write_and_verify`."""
    return [*_job(path, engine, size_mib), "--verify_only=1"]


def _job(path: Path, engine: list[str], size_mib: int) -> list[str]:
    return [
        "fio",
        "--name=job",
        f"--filename={path}",
        f"--size={size_mib}M",
        "--rw=randwrite",
        "--bs=4k",
        "--bssplit=4k/60:16k/30:128k/10",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--fallocate=none",
        "--randseed=1",
        *engine,
    ]
