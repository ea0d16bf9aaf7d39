"""Writes the status document, the ready file and the termination message.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sidecar.contract import pod
from sidecar.mounter.system.atomic_file import replace_text, temporary_name
from sidecar.mounter.system.directories import PathBlocked, open_directory, open_file, remove
from sidecar.units import KIB, MIB

SIDECAR_DIRECTORY = ".sidecar"
READY_FILE = "ready"
STATUS_FILE = "status.json"
METRICS_DIRECTORY = "metrics"
"""A directory in the state directory, made anew by each start of the sidecar."""
_SHOWN_FILE = "shown"
"""A file in the state directory, which lives as long as the pod."""

TERMINATION_MESSAGE_BYTES = 4096
"""A kubelet reads no more of the message."""
_MORE_BYTES = 50
"""Room for the line that says how many lines are missing."""
_MODE = 0o644
_MOST_DIGITS = 10
_MOST_NAMES_CHARACTERS = 64 * KIB
_MOST_CHARACTERS = 4 * MIB
"""The longest status document; it names a hundred files of each bucket."""


class SharedDirectory:
    """``<shared>/.sidecar``, which the experiment sees and may be able to change.

    So nothing in it is ever read back or opened, and no link is followed.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, shared_root: str) -> None:
        self.path = os.path.join(shared_root, SIDECAR_DIRECTORY)
        self._descriptor = open_directory(self.path, make=True)

    def write(self, name: str, text: str) -> None:
        """Replace a file in one step. Raises OSError."""
        with self._named(name, temporary_name(name)):
            replace_text(name, text, self._descriptor, mode=_MODE)

    def remove(self, name: str) -> None:
        """Delete a file if it is there. Raises OSError."""
        with self._named(name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    @contextlib.contextmanager
    def _named(self, *names: str) -> Iterator[None]:
        """Make an error name what is in the way, with its whole path."""
        try:
            yield
        except OSError as error:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    kind = os.lstat(name, dir_fd=self._descriptor).st_mode
                    if stat.S_ISDIR(kind):
                        raise PathBlocked(os.path.join(self.path, name), kind) from None
            error.filename, error.filename2 = os.path.join(self.path, names[0]), None
            raise


def dump_status(document: dict[str, Any]) -> str:
    """The status document as it is written and served."""
    return json.dumps(document, indent=2) + "\n"


def read_status_text(state: Path) -> str:
    """The status document in the state directory. No link is followed. Raises OSError."""
    directory = open_directory(state, walk_only=True)
    try:
        descriptor = open_file(directory, STATUS_FILE, os.O_RDONLY)
    finally:
        os.close(directory)
    with open(descriptor, encoding="utf-8") as file:
        return file.read(_MOST_CHARACTERS)


def read_status(state: Path) -> dict[str, Any]:
    """The status document in the state directory. Raises OSError, ValueError."""
    document: dict[str, Any] = json.loads(read_status_text(state))
    return document


def write_status(state: int, text: str) -> None:
    """Replace the status document in the state directory in one step. Raises OSError.

    Args:
        state: descriptor of the directory.
    """
    replace_text(STATUS_FILE, text, state, mode=_MODE)


def remove_status(state: int) -> None:
    """Remove the status document of an earlier run, whatever it is. Raises OSError."""
    probed = pod.ALIVE_FILE, pod.READY_FILE
    of_the_end = pod.STOPPING_FILE, pod.OVERDUE_FILE
    for name in (STATUS_FILE, temporary_name(STATUS_FILE), *of_the_end, *probed):
        remove(state, name)


def read_stopping(state: int) -> tuple[float, float] | None:
    """When the pod began to end (seconds since the epoch), and its grace period in seconds.

    None before the end, or if the file makes no sense.
    """
    try:
        with open(open_file(state, pod.STOPPING_FILE, os.O_RDONLY), encoding="ascii") as file:
            began_s, text = os.fstat(file.fileno()).st_mtime, file.read(_MOST_DIGITS).strip()
    except (OSError, ValueError):
        return None
    return (began_s, float(text)) if text.isdecimal() else None


def write_overdue(state: int, containers: Iterable[str]) -> None:
    """Ask the node's janitor to end containers of this pod. Raises OSError.

    Args:
        state: descriptor of the state directory.
        containers: their names.
    """
    replace_text(pod.OVERDUE_FILE, "".join(f"{name}\n" for name in containers), state, mode=_MODE)


def read_overdue(state: str) -> set[str]:
    """Names of the containers that a sidecar asks to end; empty if it asks for none.

    Args:
        state: path of its state directory. No link is followed.
    """
    try:
        directory = open_directory(state, walk_only=True)
        try:
            descriptor = open_file(directory, pod.OVERDUE_FILE, os.O_RDONLY)
        finally:
            os.close(directory)
        with open(descriptor, encoding="ascii", errors="replace") as file:
            return set(file.read(_MOST_NAMES_CHARACTERS).split())
    except OSError:
        return set()


def note_shown(state: int) -> None:
    """Note for later starts that other containers may have the mounts from now on. Raises OSError.

    Args:
        state: descriptor of the directory.
    """
    remove(state, _SHOWN_FILE)
    os.close(open_file(state, _SHOWN_FILE, os.O_WRONLY | os.O_CREAT))


def note_ready(state: int) -> None:
    """Make the file that startup probes wait for. Raises OSError.

    Args:
        state: descriptor of the directory.
    """
    os.close(open_file(state, pod.READY_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))


def was_shown(state: int) -> bool:
    """Whether an earlier start in this state directory has shown its mounts."""
    try:
        os.stat(_SHOWN_FILE, dir_fd=state, follow_symlinks=False)
    except OSError:
        return False
    return True


def write_termination_message(path: str, text: str) -> None:
    """Tell the kubelet why the container ended.

    The kubelet has made the file. If it cannot be written, nobody would read it, so no error.
    """
    data = text.encode(errors="replace")
    if len(data) > TERMINATION_MESSAGE_BYTES:
        kept = data[: TERMINATION_MESSAGE_BYTES - _MORE_BYTES]
        lines = kept.rpartition(b"\n")[0] or kept.decode(errors="ignore").encode()
        more = data.rstrip(b"\n").count(b"\n") - lines.count(b"\n")
        data = lines + b"\n... and %d more lines, in the log\n" % more
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        folder, name = os.path.split(path)
        directory = open_directory(folder, walk_only=True)
        stack.callback(os.close, directory)
        flags = os.O_WRONLY | os.O_TRUNC
        file = stack.enter_context(open(open_file(directory, name, flags), "wb"))
        file.write(data)
