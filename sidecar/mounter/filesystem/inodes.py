"""Nodes: what the kernel knows by a number. The table of those it holds.

One node is one version of one object. When an object changes in the bucket behind this
mount's back, its name gets a new node, and the old one lives on, detached, for those who
hold it open: no reader ever sees two versions through one node, and the kernel's cached
pages of a node are right for ever (fs/fuse/inode.c truncates them when a size changes,
which would show a reader the end of the new version in the middle of the old one).
A change through this mount keeps the node, as POSIX wants.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from sidecar.errors import NodeForgotten
from sidecar.mounter.filesystem.journal import LOOKUP, Journal, Record
from sidecar.mounter.filesystem.listing import Changes, Listing
from sidecar.mounter.filesystem.names import LINK_SUFFIX
from sidecar.mounter.store.interface import ObjectInfo
from sidecar.mounter.writing.spool import SpoolFile

ROOT = 1
"""FUSE_ROOT_ID of the kernel's include/uapi/linux/fuse.h."""


class Node:
    """What directories, files and links share.

    Attributes:
        lookups: how many times the kernel was given this node and has not forgotten it.
        detached: no name leads here any more (deleted, replaced, or changed remotely).
        fresh_until_s: until when (monotonic) the store need not be asked again.
    """

    __slots__ = ("detached", "fresh_until_s", "id", "lookups", "name", "parent")

    def __init__(self, node_id: int, parent: Directory | None, name: str) -> None:
        self.id = node_id
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.detached = False
        self.fresh_until_s = 0.0

    @property
    def key(self) -> str:
        """The object's key below the mount's root; a directory's ends in ``/``."""
        parts = [self.name]
        parent = self.parent
        while parent is not None and parent.parent is not None:
            parts.append(parent.name)
            parent = parent.parent
        return "/".join(reversed(parts))

    @property
    def object_key(self) -> str:
        """The key of the object that it is in the store."""
        return self.key


class Directory(Node):
    """A directory.

    Attributes:
        children: the nodes below that somebody knows, by name.
        listing: the last reading of it.
        kept: made or emptied through this mount, so that it exists without any object.
        misses: names asked for one by one since the last listing.
        missed_s: how long the store took to answer for them.
        entered_s: when a directory of it was last read (monotonic).
        attributes: mode, uid, gid and mtime_ns that its object keeps, by name.
        attributes_until_s: until when (monotonic) they are believed; 0: never asked for.
    """

    __slots__ = (
        "attributes",
        "attributes_until_s",
        "changes",
        "children",
        "entered_s",
        "kept",
        "listing",
        "lock",
        "missed_s",
        "misses",
        "mtime_ns",
        "negative",
    )

    def __init__(self, node_id: int, parent: Directory | None, name: str, mtime_ns: int) -> None:
        super().__init__(node_id, parent, name)
        self.children: dict[str, Node] = {}
        self.listing: Listing | None = None
        self.changes = Changes()
        self.kept = False
        self.misses = 0
        self.missed_s = 0.0
        self.entered_s = float("-inf")
        self.negative: dict[str, float] = {}
        self.mtime_ns = mtime_ns
        self.attributes: dict[str, int] = {}
        self.attributes_until_s = 0.0
        self.lock = threading.RLock()

    @property
    def key(self) -> str:
        """Ends in ``/``; empty for the root."""
        return f"{super().key}/" if self.parent is not None else ""


class File(Node):
    """A file: an object in the store, or one that is still only in the spool.

    Attributes:
        remote: the object's version that the store has; None before the first upload.
        spool: what was written and is kept locally; reads come from it while it exists.
        attributes: mode, uid, gid and mtime_ns that were set, by name.
        handles, writers: open handles, and those of them that may write.
        lock: held while the spool is changed or uploaded.
        failure: the last upload's error that no close or fsync has reported yet.
    """

    __slots__ = ("attributes", "handles", "lock", "remote", "spool", "writers")

    def __init__(
        self, node_id: int, parent: Directory | None, name: str, remote: ObjectInfo | None
    ) -> None:
        super().__init__(node_id, parent, name)
        self.remote = remote
        self.spool: SpoolFile | None = None
        self.attributes: dict[str, int] = {}
        self.handles = 0
        self.writers = 0
        self.lock = threading.RLock()

    @property
    def size_bytes(self) -> int:
        """The length a reader sees."""
        if self.spool is not None:
            return self.spool.size_bytes
        return self.remote.size_bytes if self.remote is not None else 0


class Link(Node):
    """A symbolic link.

    Attributes:
        remote: the object's version; its content is the target.
        target: the content, once it was asked for.
        attributes: uid, gid and mtime_ns that were set, by name.
    """

    __slots__ = ("attributes", "remote", "target")

    def __init__(self, node_id: int, parent: Directory | None, name: str, remote: ObjectInfo):
        super().__init__(node_id, parent, name)
        self.remote = remote
        self.target: bytes | None = None
        self.attributes: dict[str, int] = {}

    @property
    def object_key(self) -> str:
        """Its key has a suffix that its name has not."""
        return self.key + LINK_SUFFIX


class NodeTable:
    """Every node that the kernel or a handle holds. Safe to use from any thread.

    A node leaves the table when the kernel has forgotten it and nothing is open, dirty or
    below it.
    """

    def __init__(self, root_mtime_ns: int, journal: Journal) -> None:
        self.lock = threading.RLock()
        self._journal = journal
        self.root = Directory(ROOT, None, "", root_mtime_ns)
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT: self.root}
        self._next = ROOT + 1

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        with self.lock:
            return iter(list(self._nodes.values()))

    def get(self, node_id: int) -> Node:
        """The node of a number. Raises NodeForgotten."""
        try:
            return self._nodes[node_id]
        except KeyError:
            raise NodeForgotten(f"node {node_id} was never given out or was forgotten") from None

    def find(self, node_id: int) -> Node | None:
        """The node of a number, where there is one."""
        return self._nodes.get(node_id)

    def hold(self, nodes: Sequence[Node]) -> None:
        """Count one lookup of each; one that was just dropped by another thread comes back."""
        with self.lock:
            records: list[Record] = []
            for node in nodes:
                node.lookups += 1
                if node.id not in self._nodes:
                    self._nodes[node.id] = node
                    if node.parent is not None and not node.detached:
                        node.parent.children.setdefault(node.name, node)
                held = ("held", node.id, node.lookups)
                records.append(held if node.lookups > 1 else _record(node))
            self._journal.give(LOOKUP, [node.id for node in nodes], records)

    def note(self, node: Node) -> None:
        """Write a node down, after it changed, for a worker that comes after this one."""
        with self.lock:  # so that no older state of it is written behind a newer one
            if _is_held(node):
                self._journal.write(_record(node))

    @property
    def last_number(self) -> int:
        """The highest number that was ever given out."""
        return self._next - 1

    def records(self) -> list[Record]:
        """What a successor must know, in full. Takes no lock."""
        return [_record(node) for node in list(self._nodes.values()) if _is_held(node)]

    def add_file(self, parent: Directory, name: str, remote: ObjectInfo | None) -> File:
        """A new file node under a name, in place of the one that had it."""
        with self.lock:
            node = File(self._take_number(), parent, name, remote)
            self._bind(node, parent, name)
            return node

    def add_link(self, parent: Directory, name: str, remote: ObjectInfo) -> Link:
        """A new link node under a name, in place of the one that had it."""
        with self.lock:
            node = Link(self._take_number(), parent, name, remote)
            self._bind(node, parent, name)
            return node

    def add_directory(self, parent: Directory, name: str, mtime_ns: int) -> Directory:
        """A new directory node under a name, in place of the one that had it."""
        with self.lock:
            node = Directory(self._take_number(), parent, name, mtime_ns)
            self._bind(node, parent, name)
            return node

    def detach(self, node: Node) -> None:
        """Take a node's name away; handles and the kernel may hold it still."""
        with self.lock:
            parent = node.parent
            if not node.detached and parent is not None:
                node.detached = True
                if parent.children.get(node.name) is node:
                    del parent.children[node.name]
                self.note(node)
            self.drop_unused(node)

    def move(self, node: Node, parent: Directory, name: str) -> None:
        """Give a node another name, in place of the one that had it."""
        with self.lock:
            old = node.parent
            if old is not None and old.children.get(node.name) is node:
                del old.children[node.name]
            node.parent, node.name = parent, name
            self._replace(parent, name)
            parent.children[name] = node
            self.note(node)

    def forget(self, node_id: int, count: int) -> None:
        """The kernel drops ``count`` of the lookups it was given (FUSE_FORGET)."""
        with self.lock:
            node = self._nodes.get(node_id)
            if node is None or node is self.root:
                return
            node.lookups = max(0, node.lookups - count)
            self._journal.write(("held", node.id, node.lookups))
            self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        """Remove the node, and then its parents, if nothing holds them."""
        with self.lock:
            while node is not self.root and not _is_held(node):
                if self._nodes.pop(node.id, None) is None:
                    return
                self._journal.write(("dropped", node.id))
                parent = node.parent
                if parent is None:
                    return
                if parent.children.get(node.name) is node:
                    del parent.children[node.name]
                node = parent

    def restore(
        self, kept: dict[int, Record], last_number: int, adopt: Callable[[str], SpoolFile]
    ) -> None:
        """Take over the nodes of a predecessor, by number, from their last records.

        Args:
            last_number: the highest that it gave out.
            adopt: opens the spool file that a record names.
        """
        with self.lock:
            for record in kept.values():
                node = _restored(record, adopt)
                if node is not None:
                    self._nodes[node.id] = node
            for number, record in kept.items():
                parent = self._nodes.get(record[2])
                node = self._nodes[number]
                if node is self.root:
                    continue
                if isinstance(parent, Directory):
                    node.parent = parent
                    if not node.detached:
                        parent.children[node.name] = node
                else:
                    node.detached = True  # its directory was forgotten: no path leads here
            self._next = max(last_number, ROOT) + 1

    def _take_number(self) -> int:
        number = self._next
        self._next += 1
        return number

    def _bind(self, node: Node, parent: Directory, name: str) -> None:
        self._replace(parent, name)
        parent.children[name] = node
        self._nodes[node.id] = node

    def _replace(self, parent: Directory, name: str) -> None:
        old = parent.children.pop(name, None)
        if old is not None:
            old.detached = True
            self.note(old)
            self.drop_unused(old)


def _record(node: Node) -> Record:
    head = (
        "node",
        node.id,
        node.parent.id if node.parent is not None else 0,
        node.name,
        node.lookups,
        node.detached,
    )
    if isinstance(node, Link):
        return (*head, node.remote.bare, node.attributes, node.target)
    if isinstance(node, File):
        remote = node.remote.bare if node.remote is not None else None
        spool = node.spool
        if spool is None:
            return (*head, remote, node.attributes, None, False, None)
        return (*head, remote, node.attributes, str(spool.path), spool.dirty, node.key)
    assert isinstance(node, Directory)
    return (*head, node.kept, node.mtime_ns)


def _restored(record: Record, adopt: Callable[[str], SpoolFile]) -> Node | None:
    _, number, _parent, name, lookups, detached, *details = record
    if number == ROOT:
        return None
    node: Node
    if len(details) == 2:
        directory = Directory(number, None, name, details[1])
        directory.kept = details[0]
        node = directory
    elif len(details) == 3:
        remote, attributes, target = details
        link = Link(number, None, name, ObjectInfo(*remote))
        link.attributes = dict(attributes)
        link.target = target
        node = link
    else:
        remote, attributes, spool_path, dirty, _key = details
        file = File(number, None, name, ObjectInfo(*remote) if remote is not None else None)
        file.attributes = dict(attributes)
        if spool_path is not None:
            file.spool = adopt(spool_path)
            file.spool.dirty = dirty
        node = file
    node.lookups = lookups
    node.detached = detached
    return node


def _is_held(node: Node) -> bool:
    """Whether the kernel may ask for the node, or something of it or below it is only here."""
    if node.lookups:
        return True
    if isinstance(node, File):
        return bool(node.handles) or (node.spool is not None and not node.detached)
    return isinstance(node, Directory) and (
        bool(node.children) or (node.kept and not node.detached)
    )
