"""READDIRPLUS: attributes come with every line, until there are too many nodes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from sidecar.mounter.filesystem.nodes import ROOT
from sidecar.mounter.transport import kernel, protocol
from tests.support.memory_store import MemoryStore
from tests.support.serve import build

FILES = 20
ROOM = 8
_NAME_AT = protocol.ENTRY_OUT.size + protocol.ATTR.size


@pytest.mark.parametrize("most", [kernel._MOST_NODES, 2 + ROOM], ids=["room", "little room"])
def test_lines_beyond_the_most_nodes_have_names_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(kernel, "_MOST_NODES", most)
    store = MemoryStore()
    for number in range(FILES):
        store.put(f"dir/{number:02}", b"content")
    filesystem, metrics = build(store, tmp_path, read_only=True, ttl_s=600)
    server = kernel.Server(filesystem, os.open(os.devnull, os.O_RDWR), metrics, lambda _: None)
    node = filesystem.lookup(ROOT, "dir").attributes.node
    handle = filesystem.open_directory(node)
    body = memoryview(struct.pack("<QQII", handle, 0, 1 << 16, 0) + bytes(16))
    (reply,) = server.read_directory_plus(kernel.Request(44, 2, node, body), True).reply
    found: dict[bytes, int] = {}
    while reply:
        length = int.from_bytes(reply[_NAME_AT + 16 : _NAME_AT + 20], "little")
        name = bytes(reply[_NAME_AT + 24 : _NAME_AT + 24 + length])
        found[name] = int.from_bytes(reply[:8], "little")
        reply = reply[protocol.dirent_bytes(length, plus=True) :]
    names = [b"%02d" % number for number in range(FILES)]
    assert list(found) == [b".", b"..", *names]
    given = min(FILES, most - 2)  # the root and the directory are nodes too
    assert all(found[name] for name in names[:given])
    assert not any(found[name] for name in names[given:])


def test_the_kernel_does_not_choose_which_lines_have_attributes() -> None:
    assert kernel._WANTED & protocol.Init.DO_READDIRPLUS
    assert not kernel._WANTED & protocol.Init.READDIRPLUS_AUTO
