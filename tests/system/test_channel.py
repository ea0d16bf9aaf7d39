"""Messages between processes: each arrives whole or is seen to be no message."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from typing import Any

import pytest

from sidecar.mounter.system.channel import MESSAGE_BYTES, BadMessage, Channel
from sidecar.mounter.system.status import TERMINATION_MESSAGE_BYTES, write_termination_message

LONG_NAME = "データ" * 37


def test_what_is_too_long_is_sent_with_fewer_items_and_shorter_texts() -> None:
    near, far = Channel.pair()
    with far, contextlib.closing(near):
        sent: dict[str, Any] = {
            "event": "draining",
            "unsaved": [{"key": f"{number}{LONG_NAME}"} for number in range(1000)],
            "why": "x" * MESSAGE_BYTES,
            "unsaved_count": 1000,
        }
        Channel(far).send(sent)
        received = near.receive(wait=False)
        assert received is not None
        message = received[0]
    assert message["unsaved_count"] == 1000
    assert message["unsaved"] == sent["unsaved"][: len(message["unsaved"])]
    assert len(message["unsaved"]) > 50
    assert message["why"].startswith("xxx")
    assert len(message["why"]) > 1000


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe",
        b"{",
        b'["event"]',
        b"[" * 60_000,
        b"9" * 5000,
        json.dumps({"event": "x" * MESSAGE_BYTES}).encode(),  # cut by the kernel
    ],
    ids=["no-text", "no-json", "a-list", "endless", "a-number", "too-long"],
)
def test_what_is_no_message_is_seen_and_the_next_one_arrives(data: bytes) -> None:
    near, far = Channel.pair()
    with far, contextlib.closing(near):
        reading, writing = os.pipe2(os.O_NONBLOCK)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            socket.send_fds(far, [data], [writing])
            os.close(writing)
            Channel(far).send({"event": "next"})
            with pytest.raises(BadMessage):
                near.receive(wait=False)
            assert pipe.read() == b"", "the descriptor that came with it is closed"
        assert near.receive(wait=False) == ({"event": "next"}, [])


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, "\ud800" * 9000])
def test_a_line_that_is_too_long_for_the_kubelet_is_cut(
    tmp_path: os.PathLike[str], text: str
) -> None:
    file = os.path.join(tmp_path, "termination-log")
    with open(file, "wb"):
        pass
    write_termination_message(file, f"{text}\nsecond\n")
    with open(file, "rb") as opened:
        data = opened.read()
    assert len(data) <= TERMINATION_MESSAGE_BYTES
    assert len(data) > TERMINATION_MESSAGE_BYTES // 2
    assert data.decode().startswith(text[:5].replace("\ud800", "?"))
    assert data.endswith(b"... and 1 more lines, in the log\n")
