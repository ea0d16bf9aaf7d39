"""A separate disk for mounts' spools: as slow as a node's root disk, or free.

ext4 on a loop device in a file. Only root can make and remove it. It costs memory for the dirty
pages, and room for the file.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.failure import BenchFailure
from benchmarks.mounts import detach
from benchmarks.processes import uninterrupted

_THROTTLE = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")
_SECTOR_BYTES = 512
_WRITTEN_SECTORS = 6
"""Its place in the device's statistics (Documentation/block/stat.rst)."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a disk.

    Attributes:
        name: the end of a workload's name.
        words: the end of its title.
        bytes_per_s: the rate that it takes; None: that of the disk with the file.
        dirty_bytes: how much may be in memory and not yet on it.
    """

    name: str
    words: str
    bytes_per_s: int | None = None
    dirty_bytes: int = 0


FREE_DISK = Speed("free-disk", "spool on a disk of its own")
NODE_DISK = Speed(
    "node-disk",
    "spool on a disk of 125 MB/s, of which 180 MB may be dirty",
    125_000_000,
    180_000_000,
)
"""A gp3 with its default rate, and a fifth of the memory of a container that has 900 MB."""


@dataclass(frozen=True, slots=True)
class SpoolDisk:
    """A mounted disk; ``device`` such as ``loop0``."""

    path: Path
    device: str

    def written_bytes(self) -> int:
        """How much has reached it so far."""
        fields = Path(f"/sys/block/{self.device}/stat").read_text().split()
        return int(fields[_WRITTEN_SECTORS]) * _SECTOR_BYTES


@contextmanager
def spool_disk(folder: Path, size_bytes: int, speed: Speed) -> Iterator[SpoolDisk]:
    """Make a disk; remove it in any case.

    Args:
        folder: has its file and its mount point.

    Raises:
        BenchFailure: such a disk cannot be made here; the message says why.
    """
    if os.geteuid() != 0:
        raise BenchFailure("a disk for the spool needs root")
    image, path = folder / "disk.img", folder / "disk"
    path.mkdir()
    undo = ExitStack()
    try:
        with uninterrupted():  # `undo` must learn of everything that is made
            disk = _made(image, path, size_bytes, undo)
            if speed.bytes_per_s is not None:
                _slow_down(disk, speed, undo)
        yield disk
    finally:
        with uninterrupted():
            undo.close()


def _made(image: Path, path: Path, size_bytes: int, undo: ExitStack) -> SpoolDisk:
    undo.callback(image.unlink, missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size_bytes)
    # All tables now, so that no part of the file system is written later.
    layout = ("-N", "4096", "-J", "size=32", "-E", "lazy_itable_init=0,lazy_journal_init=0")
    _run("mkfs.ext4", "-q", *layout, str(image))
    loop = _run("losetup", "--find", "--show", "--direct-io=on", str(image))
    undo.callback(_run, "losetup", "--detach", loop)
    _run("mount", "-t", "ext4", loop, str(path))
    undo.callback(detach, path)
    return SpoolDisk(path, loop.removeprefix("/dev/"))


def _slow_down(disk: SpoolDisk, speed: Speed, undo: ExitStack) -> None:
    if not _THROTTLE.exists():
        raise BenchFailure(f"a slow disk needs cgroup v1's {_THROTTLE}")
    number = Path(f"/sys/block/{disk.device}/dev").read_text().strip()
    pages = Path(f"/sys/class/bdi/{number}")
    most_percent = (pages / "max_ratio").read_text()
    undo.callback((pages / "max_ratio").write_text, most_percent)
    undo.callback((pages / "strict_limit").write_text, "0")
    undo.callback(_THROTTLE.write_text, f"{number} 0")
    try:
        (pages / "max_bytes").write_text(str(speed.dirty_bytes))
        (pages / "strict_limit").write_text("1")
        _THROTTLE.write_text(f"{number} {speed.bytes_per_s}")
    except OSError as error:
        raise BenchFailure(f"a slow disk: {error}") from None


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise BenchFailure(f"`{' '.join(argv)}`: {done.stderr.strip()}")
    return done.stdout.strip()
