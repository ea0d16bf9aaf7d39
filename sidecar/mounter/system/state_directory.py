"""A directory of the sidecar's state, in which others may have put things.

The state may be a hostPath, or a volume that another container mounts, too. So files are opened by
name relative to a descriptor of their directory, no link is followed, and only plain files of ours
are opened. Anything else in the way is moved aside and never keeps the sidecar from starting.
Standard library only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from sidecar.errors import StateUnusable
from sidecar.mounter.system.atomic_file import replacing, temporary_name
from sidecar.mounter.system.directories import PathBlocked, make_child, open_directory, open_file
from sidecar.mounter.system.shortage import lacks_resources

log = logging.getLogger(__name__)


class StateDirectory:
    """One directory, held by a descriptor. Its methods take names, not paths.

    Attributes:
        path: where it was found, for messages.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._owners = {os.geteuid(), os.fstat(descriptor).st_uid}
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def open(cls, path: Path) -> StateDirectory:
        """The directory of a path, reached without a link, and made if it is missing.

        Raises OSError.
        """
        return cls(path, open_directory(path, make=True))

    def below(self, name: str) -> StateDirectory:
        """A directory in this one, made if it is missing. Raises OSError."""
        path = self.path / name
        try:
            return StateDirectory(path, make_child(self._descriptor, name, str(path)))
        except PathBlocked:
            kept = self.set_aside(name)
            log.warning("`%s` is no directory; it is kept as `%s`", path, kept)
            return StateDirectory(path, make_child(self._descriptor, name, str(path)))

    def names(self, suffix: str = "") -> list[str]:
        """The names in it that end in ``suffix``, in order. Raises OSError."""
        with os.scandir(self._descriptor) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(suffix))

    def exists(self, name: str) -> bool:
        """Whether anything has the name, a broken link included."""
        try:
            os.lstat(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        return True

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a plain file of ours that has no other name.

        Raises:
            FileNotFoundError: nothing has the name.
            StateUnusable: something else has it, or it cannot be opened.
            OSError: descriptors or memory are lacking, which says nothing about the file.
        """
        try:
            descriptor = open_file(self._descriptor, name, flags)
        except PathBlocked as error:
            raise StateUnusable(f"`{self.path / name}` is {error.kind}, and no file") from None
        except FileNotFoundError:
            raise
        except OSError as error:
            if lacks_resources(error):
                raise
            raise StateUnusable(f"`{self.path / name}`: {error.strerror}") from None
        found = os.fstat(descriptor)
        if found.st_nlink > 1:
            problem = "has another name elsewhere"
        elif found.st_uid not in self._owners:
            problem = f"belongs to user {found.st_uid}"
        else:
            return descriptor
        os.close(descriptor)
        raise StateUnusable(f"`{self.path / name}` {problem}")

    def create_file(self, name: str, flags: int = os.O_RDWR) -> int:
        """A descriptor of a new, empty file. Raises FileExistsError, OSError."""
        flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._descriptor)

    def read(self, name: str, most_bytes: int) -> bytes:
        """The content of a small file. Raises as :meth:`open_file`; StateUnusable if longer."""
        with open(self.open_file(name), "rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise StateUnusable(f"`{self.path / name}` is longer than {most_bytes} bytes")
        return content

    @contextlib.contextmanager
    def replacing(self, name: str, *, mode: int = 0o600) -> Iterator[int]:
        """A descriptor of a new file that takes the place of whatever has the name.

        If the body raises, ``name`` stays as it was. Raises OSError.
        """
        for one in (name, temporary_name(name)):  # a directory can be neither deleted nor replaced
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(one, dir_fd=self._descriptor).st_mode):
                    kept = self.set_aside(one)
                    log.warning("`%s` is a directory; it is kept as `%s`", self.path / one, kept)
        with replacing(name, mode=mode, directory=self._descriptor) as descriptor:
            yield descriptor

    def remove(self, name: str) -> None:
        """Delete a file, or a link itself. If nothing has the name, that is no error."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def set_aside(self, name: str) -> str:
        """Rename whatever has the name to a name that nothing uses; that name. Raises OSError."""
        kept = f"{name}.{time.time_ns()}.unusable"
        os.rename(name, kept, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        return kept
