"""Keeps the first reads of a run for later runs, in a file of the outputs volume.

The user agrees to it by the option ``warmLearned``, whose value is the label of the file. Anybody
who may write there may change the file, so its content is checked: at worst, the wrong files of the
volume are read.
"""

from __future__ import annotations

import gzip
import io
import os
import time
from typing import Final

from sidecar.contract.spec import PersistenceSpec, Volume
from sidecar.mounter.reading import read_log
from sidecar.mounter.reading.read_log import Run
from sidecar.mounter.system import directories

FOLDER: Final = ".mount-sidecar/learned"
"""The folder in the outputs volume."""
RELEARN_S: Final = 7 * 24 * 3600.0
"""Older notes are not used and are made anew: what programs read changes, and reads that are
answered from memory are not seen."""
_MODE: Final = 0o644


def load(spec: PersistenceSpec, volume: Volume) -> list[Run] | None:
    """The first reads of an earlier run with the volume's label; None: note those of this run.

    Raises OSError.
    """
    root = _outputs_root(spec)
    if root is None:
        return None
    try:
        folder = directories.open_directory(f"{root}/{FOLDER}")
    except FileNotFoundError:
        return None
    try:
        with open(directories.open_file(folder, _name(volume), os.O_RDONLY), "rb") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > RELEARN_S:
                return None
            packed = file.read(read_log.MOST_BYTES)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)
    try:
        with gzip.open(io.BytesIO(packed)) as unpacked:
            return read_log.parse(unpacked.read(read_log.MOST_BYTES + 1))
    except (OSError, EOFError, ValueError):  # a torn file, or not ours
        return None


def save(spec: PersistenceSpec, volume: Volume, content: bytes) -> bool:
    """Keep what this run has read first. False without an outputs volume. Raises OSError."""
    root = _outputs_root(spec)
    if root is None:
        return False
    folder = directories.open_directory(f"{root}/{FOLDER}", make=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(directories.open_file(folder, _name(volume), flags, _MODE), "wb") as file:
            file.write(gzip.compress(content, mtime=0))
    finally:
        os.close(folder)
    return True


def _outputs_root(spec: PersistenceSpec) -> str | None:
    return next((v.mounted_at for v in spec.volumes if v.kind == "outputs"), None)


def _name(volume: Volume) -> str:
    return f"{volume.name}-{volume.options.warm_learned}.json.gz"
