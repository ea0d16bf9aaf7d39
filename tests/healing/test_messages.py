"""Whatever a child says, process 1 goes on, and what programs wrote is saved."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Options
from sidecar.mounter.system import child_messages
from tests.healing.conftest import VOLUME, Bucket, Start
from tests.support.sidecar import Sidecar

_PIDFD_GETFD = 438
_UNLIKE: list[Any] = [None, True, -1, 10**400, 0.5, "x", "\ud800", [], [1], [{}], {}, {"a": 1}]
"""Values of each type, of which most are not what a field holds."""


def channel_of(sidecar: Sidecar, pid: int) -> socket.socket:
    """A copy of a child's end of its channel: the datagram socket that process 1 made."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            if not stat.S_ISSOCK(os.stat(f"/proc/{pid}/fd/{name}").st_mode):
                continue
            copy = libc.syscall(_PIDFD_GETFD, process, int(name), 0)
            assert copy >= 0, os.strerror(ctypes.get_errno())
            found = socket.socket(fileno=copy)
            creator = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            is_unix = found.family == socket.AF_UNIX and found.type == socket.SOCK_SEQPACKET
            if is_unix and struct.unpack("3i", creator)[0] == sidecar.pid:
                return found
            found.close()
    finally:
        os.close(process)
    raise AssertionError("no channel")


def wrong_messages() -> Iterator[bytes]:
    """Bytes that are no message, and each message without a field, and with another value."""
    yield from (b"\0", b"{", b"null", b"[" * 60_000, b"1" * 5000, b"x" * 200_000)
    yield from (json.dumps({"event": value}).encode() for value in _UNLIKE)
    for event, fields in child_messages.SHAPES.items():
        right = {"event": event, **{name: _like(shape) for name, shape in fields.items()}}
        for name in fields:
            yield json.dumps({key: value for key, value in right.items() if key != name}).encode()
            for value in _UNLIKE:
                if not child_messages.fits(value, fields[name]):
                    yield json.dumps({**right, name: value}).encode()


def _like(shape: Any) -> Any:
    """A value of a shape."""
    if isinstance(shape, dict):
        return {name: _like(item) for name, item in shape.items() if isinstance(name, str)}
    if isinstance(shape, list):
        return [_like(shape[0])]
    return shape[-1] if isinstance(shape, range) else {bool: True, str: "x"}[shape]


@pytest.mark.parametrize("role", ["worker", "health", "fork-server"])
def test_no_message_ends_process_1(
    start: Start, bucket: Bucket, mountpoint: Path, role: str
) -> None:
    sidecar = start(options=Options(save_s=3600))
    with (mountpoint / "open").open("wb", buffering=0) as file:
        file.write(b"content")
        (pid,) = sidecar.children_named(role)
        with channel_of(sidecar, pid) as channel:
            for data in wrong_messages():
                channel.send(data)
        assert sidecar.get("/livez")[0] == 200
        assert sidecar.status()["phase"] == "ready"
    sidecar.wait_for(lambda: "a message that makes no sense" in sidecar.log())
    (mountpoint / "after").write_bytes(b"more")
    assert sidecar.volume_status(VOLUME)["state"] == "serving"
    assert sidecar.stop() == 0
    assert bucket.keys() == ["after", "open"]
    assert "Traceback" not in sidecar.log()


def test_nonsense_while_it_saves(start: Start, bucket: Bucket, mountpoint: Path) -> None:
    """The answer of the end is in a message, too."""
    sidecar = start(options=Options(save_s=3600))
    (pid,) = sidecar.children_named("worker")
    with channel_of(sidecar, pid) as channel, contextlib.ExitStack() as stack:
        file = os.open(mountpoint / "file", os.O_WRONLY | os.O_CREAT)
        stack.push(lambda kind, *_: kind is OSError)  # close(2) finds no mount
        stack.callback(os.close, file)
        os.write(file, b"content")
        for data in wrong_messages():
            channel.send(data)
        assert sidecar.stop() == 0
    assert bucket.keys() == ["file"]


BUG = """
import os
from sidecar.mounter.supervisor.hang_watch import HangWatch

def turn(self):
    if os.path.exists({file!r}):
        os.unlink({file!r})
        raise KeyError("a bug")

HangWatch.turn = turn
"""


def test_a_bug_in_process_1_loses_nothing(
    start: Start, bucket: Bucket, mountpoint: Path, tmp_path: Path
) -> None:
    trigger, modules = tmp_path / "trigger", tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(BUG.format(file=str(trigger)))
    sidecar = start(options=Options(save_s=3600), environment={"PYTHONPATH": str(modules)})
    with contextlib.ExitStack() as stack:
        file = os.open(mountpoint / "file", os.O_WRONLY | os.O_CREAT)
        stack.push(lambda kind, *_: kind is OSError)  # close(2) finds no mount
        stack.callback(os.close, file)
        os.write(file, b"content")
        trigger.touch()
        assert sidecar.wait() == 1
    assert bucket.keys() == ["file"]
    assert sidecar.said()[-1] == "error SC1000 INTERNAL: KeyError('a bug')"
