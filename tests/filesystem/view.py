"""A file system by paths, and stores whose listings are in pages or late."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from sidecar.metrics import scrape_registry
from sidecar.mounter.filesystem.inodes.attributes import Attributes
from sidecar.mounter.filesystem.inodes.inode import ROOT
from sidecar.mounter.filesystem.names.name_memory import BUDGET_BYTES
from sidecar.mounter.store.interface import Page, Store
from sidecar.mounter.writing.part_memory import PartMemory
from tests.support.memory_store import Hook, MemoryStore, after
from tests.support.serve import SPOOL_BYTES, build

FOR_EVER_S = 3600.0


class View:
    """Calls a file system as a transport does, by path. It caches nothing itself.

    Attributes:
        fs: the file system itself.
    """

    def __init__(
        self,
        store: Store,
        state: Path,
        *,
        ttl_s: float = FOR_EVER_S,
        read_only: bool = False,
        spool_bytes: int = SPOOL_BYTES,
        names_bytes: int = BUDGET_BYTES,
        memory: PartMemory | None = None,
    ) -> None:
        self.fs, _ = build(
            store,
            state,
            ttl_s=ttl_s,
            read_only=read_only,
            spool_bytes=spool_bytes,
            names_bytes=names_bytes,
            memory=memory,
        )
        self._state = state

    def inode(self, path: str) -> int:
        """The inode of a path, looked up name by name."""
        inode = ROOT
        for part in path.split("/"):
            if part:
                inode = self.fs.lookup(inode, part).attributes.inode
        return inode

    def stat(self, path: str) -> Attributes:
        return self.fs.get_attributes(self.inode(path)).attributes

    def names(self, path: str = "") -> list[str]:
        """The directory's names, without ``.`` and ``..``, in the order of the listing."""
        handle = self.fs.open_directory(self.inode(path))
        try:
            lines = [line.name for line in self.fs.read_directory(handle, 0)]
        finally:
            self.fs.release_directory(handle)
        return lines[2:]

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """A handle, of a new file with O_CREAT."""
        if flags & os.O_CREAT:
            parent, name = self._split(path)
            return self.fs.create(parent, name, 0o644, flags)[1]
        return self.fs.open(self.inode(path), flags)

    def read_handle(self, handle: int, offset: int = 0, size: int = 1 << 20) -> bytes:
        result = self.fs.read(handle, offset, size)
        try:
            return b"".join(result.views)
        finally:
            result.release()

    def read(self, path: str) -> bytes:
        handle = self.open(path)
        try:
            return self.read_handle(handle)
        finally:
            self.fs.release(handle)

    def write(self, path: str, data: bytes) -> None:
        """Open, write, close: what ``echo > path`` does."""
        handle = self.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            self.fs.write(handle, 0, data)
            self.fs.flush(handle)
        finally:
            self.fs.release(handle)

    def unlink(self, path: str) -> None:
        self.fs.unlink(*self._split(path))

    def rename(self, old: str, new: str) -> None:
        self.fs.rename(*self._split(old), *self._split(new), 0)

    def metric(self, name: str) -> float:
        """A metric of the volume."""
        registry = scrape_registry(self._state / "metrics", dict)
        return registry.get_sample_value(name, {"volume": "data/memory"}) or 0.0

    def hidden(self, reason: str) -> float:
        """The metric of keys left out."""
        registry = scrape_registry(self._state / "metrics", dict)
        labels = {"volume": "data/memory", "reason": reason}
        return registry.get_sample_value("mount_sidecar_hidden_keys_total", labels) or 0.0

    def _split(self, path: str) -> tuple[int, str]:
        directory, _, name = path.rpartition("/")
        return self.inode(directory), name


def paged_store(page: int) -> MemoryStore:
    """Lists a few entries at a time."""

    def list_few(list_page: Hook, *arguments: Any, limit: int = 1000, **named: Any) -> Page:
        return list_page(*arguments, limit=min(limit, page), **named)

    return MemoryStore(list=list_few)


def delay_next_list(store: MemoryStore) -> tuple[threading.Event, threading.Event]:
    """Have one LIST answered late, with the content at the time of the request.

    Returns an event that is set when the LIST has its answer and waits, and one that lets it go.
    """
    asked, gate = threading.Event(), threading.Event()

    def wait(*_: Any, **__: Any) -> None:
        asked.set()
        gate.wait()

    store.once("list", after(wait))
    return asked, gate
