"""Replaces a file in one step: a reader, or a crash, finds the old content or the new one.

Standard library only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def temporary_name(name: str) -> str:
    """The file's name until it takes the place of ``name``."""
    return f"{name}.new"


@contextlib.contextmanager
def replacing(name: str, directory: int, *, mode: int = 0o600) -> Iterator[int]:
    """A descriptor of a new, empty file that takes the place of ``name`` at the end.

    Whatever has the name is replaced and never opened, unless it is a directory. If the body
    raises, ``name`` stays as it was.

    Args:
        directory: descriptor of the directory in which ``name`` is.
        mode: of the new file, before the umask.

    Raises:
        OSError: the file cannot be made or renamed.
    """
    temporary = temporary_name(name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=directory)
    descriptor = os.open(
        temporary,
        os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        mode,
        dir_fd=directory,
    )
    try:
        yield descriptor
    finally:
        os.close(descriptor)
    os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)


def replace_text(name: str, text: str, directory: int, *, mode: int = 0o600) -> None:
    """Replace the content of a file. Arguments and errors as of :func:`replacing`."""
    with (
        replacing(name, directory, mode=mode) as descriptor,
        open(descriptor, "w", encoding="utf-8", closefd=False) as file,
    ):
        file.write(text)
