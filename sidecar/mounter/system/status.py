"""The status document, the ready file and the termination message. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

SIDECAR_DIRECTORY = ".sidecar"
READY_FILE = "ready"
STATUS_FILE = "status.json"

TERMINATION_MESSAGE_BYTES = 4096
"""What a kubelet reads of it."""
_MORE_BYTES = 40


class SharedDirectory:
    """``<shared>/.sidecar``, which the experiment's container can see and perhaps change.

    So nothing here is ever read back, and a link that somebody planted is never followed.
    """

    def __init__(self, shared_root: str) -> None:
        self.path = Path(shared_root) / SIDECAR_DIRECTORY
        self.path.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(
            self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )

    def write(self, name: str, text: str) -> None:
        """Replace a file in one step."""
        temporary = f".{name}.new"
        self.remove(temporary)
        descriptor = os.open(
            temporary,
            os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
            0o644,
            dir_fd=self._descriptor,
        )
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        os.replace(temporary, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)


def dump(document: dict[str, Any]) -> str:
    """The status document as it is written and served."""
    return json.dumps(document, indent=2) + "\n"


def read_status(state: Path) -> dict[str, Any]:
    """The status document in the state directory."""
    document: dict[str, Any] = json.loads((state / STATUS_FILE).read_text())
    return document


def write_private(path: Path, text: str) -> None:
    """Replace a file of the state directory in one step."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


def write_termination_message(path: str, text: str) -> None:
    """Tell the kubelet why the container ended; not being able to is no error of its own.

    The kubelet has made the file; where there is none, nobody reads it.
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
