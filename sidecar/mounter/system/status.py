"""Where the status document, the ready file and the termination message are written.

What they say is decided in the supervisor. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from sidecar.mounter.system.atomic_file import replace_text

SIDECAR_DIRECTORY = ".sidecar"
READY_FILE = "ready"
STATUS_FILE = "status.json"

TERMINATION_MESSAGE_BYTES = 4096
"""A kubelet reads no more of it."""
_MORE_BYTES = 40
"""Room for the line that says how many lines were left out."""
_MODE = 0o644


class SharedDirectory:
    """``<shared>/.sidecar``, which the experiment sees and may be able to change.

    So nothing here is ever read back, and no link is followed.
    """

    def __init__(self, shared_root: str) -> None:
        self.path = Path(shared_root) / SIDECAR_DIRECTORY
        self.path.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(
            self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )

    def write(self, name: str, text: str) -> None:
        """Replace a file in one step. Raises OSError."""
        replace_text(name, text, mode=_MODE, directory=self._descriptor)

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)


def dump_status(document: dict[str, Any]) -> str:
    """The status document as it is written and served."""
    return json.dumps(document, indent=2) + "\n"


def read_status(state: Path) -> dict[str, Any]:
    """The status document in the state directory."""
    document: dict[str, Any] = json.loads((state / STATUS_FILE).read_text())
    return document


def write_status(state: Path, text: str) -> None:
    """Replace the status document in the state directory in one step. Raises OSError."""
    replace_text(state / STATUS_FILE, text, mode=_MODE)


def write_termination_message(path: str, text: str) -> None:
    """Tell the kubelet why the container ended.

    The kubelet has made the file. If it cannot be written, nobody reads it: no error.
    """
    data = text.encode()
    if len(data) > TERMINATION_MESSAGE_BYTES:
        kept = data[: TERMINATION_MESSAGE_BYTES - _MORE_BYTES].rpartition(b"\n")[0]
        more = data.rstrip(b"\n").count(b"\n") - kept.count(b"\n")
        data = kept + b"\n... and %d more lines\n" % more
    with (
        contextlib.suppress(OSError),
        open(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC), "wb") as file,
    ):
        file.write(data)
