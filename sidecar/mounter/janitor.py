"""One for each node: detaches what killed sidecars left mounted, and trims the pods' shared cache.

Standard library only. Pods keep the cache within its budget themselves; the janitor does so while
no pod runs, or when the budget has become smaller. It also ends containers that outlive their grace
period (:mod:`.overdue`).

A sidecar that gets SIGKILL cannot unmount. Its dead FUSE mounts stay on the node, with their
guards below them, and the kubelet cannot delete the pod's directory: the pod hangs in
Terminating. If the sidecar does not start again and clear them, the janitor must.

A mount is detached only if all of this holds:

- It is ours by type and source, and is below the kubelet's directory of pods.
- No process sees it at another path than the node does. A container of the pod that still runs,
  the sidecar's or the experiment's, has it at a path of its own; and an experiment that outlives
  its sidecar must get errors, not an empty directory. The kubelet's mounts for sub-paths are
  exempt: the container has a mount of its own there, which keeps its errors since nothing
  propagates to it; a dead one on the node lets no container of the pod start again.
- On top is a guard, or a FUSE mount whose connection is gone, as statfs(2) says. A server that
  merely does not answer is left alone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from sidecar import logs
from sidecar.contract import pod
from sidecar.errors import EXIT_OK, MountFailed, NotRoot, PathMissing, UsageError
from sidecar.mounter import overdue
from sidecar.mounter.cache import node_folder
from sidecar.mounter.system import mounts
from sidecar.mounter.system.mounts import Mount

log = logging.getLogger("sidecar.janitor")

_ANSWER_S = 2.0
_TURN_S = 1.0
_TRIM_INTERVAL_S = 300.0
_SUB_PATHS = "/volume-subpaths/"
"""Part of the paths of the kubelet's mounts for sub-paths (pkg/volume/util/subpath)."""


class Janitor:
    """Looks after one node.

    Args:
        root: the kubelet's directory of pods, as this process sees it; mounts are detached in
            this mount namespace, from where they must propagate to the node's.

    Raises:
        PathMissing: there is no such directory, or the kubelet keeps its pods elsewhere.
        NotRoot: this process cannot unmount.
        UsageError: this process does not see the node's processes.
    """

    def __init__(self, root: Path) -> None:
        if os.geteuid() != 0:
            raise NotRoot(f"unmounting needs root, and this process has uid {os.geteuid()}")
        if os.getpid() == 1:
            raise UsageError(
                "the janitor does not see the processes of the node, and so not who uses a mount",
                "its pod needs `hostPID: true`",
            )
        if not root.is_dir():
            raise PathMissing(
                f"`{root}` is not there",
                "mount the kubelet's directory of pods there, with Bidirectional",
            )
        # It would do nothing, and seem to be fine.
        own = os.environ.get(pod.UID_VARIABLE)
        if own is not None and not (root / own).is_dir():
            raise PathMissing(
                f"`{root}` is not where this node's kubelet keeps its pods: this one, {own}, "
                "is not there",
                "set the hostPath of the DaemonSet to `pods` in the kubelet's --root-dir",
            )
        self._root = os.path.normpath(root)
        # By device, so that a server that does not answer is asked once.
        self._probes: dict[str, _ConnectionProbe] = {}

    def look(self) -> list[str]:
        """Detach what is left over now; the paths at which something was detached."""
        stacks: dict[str, list[Mount]] = {}
        for mount in mounts.mounted():
            if mount.path.startswith(f"{self._root}/"):
                stacks.setdefault(mount.path, []).append(mount)
        ours = {path: stack for path, stack in stacks.items() if all(map(mounts.is_ours, stack))}
        if not ours:
            self._probes.clear()
            return []
        used = _devices_in_pods(path.removeprefix(self._root) for path in ours)
        cleared = []
        for path, stack in ours.items():
            if _SUB_PATHS in path:
                # The kubelet may be about to give a guard to a container, which would otherwise
                # find a directory of the node. It unmounts guards by itself: they are not dead.
                is_wanted = mounts.is_guard(stack[-1])
            else:
                is_wanted = any(mount.device in used for mount in stack)
            if is_wanted or not self._is_dead(stack[-1]):
                continue
            try:
                count = mounts.clear(path)
            except MountFailed as error:
                logs.event(log, "not detached", logging.WARNING, path=path, why=error.what)
                continue
            if not count:  # its path leads elsewhere by now
                continue
            logs.event(log, "detached what a dead sidecar left", path=path, count=count)
            cleared.append(path)
        devices = {mount.device for stack in ours.values() for mount in stack}
        self._probes = {d: probe for d, probe in self._probes.items() if d in devices}
        return cleared

    def _is_dead(self, mount: Mount) -> bool:
        if mounts.is_guard(mount):
            return True
        probe = self._probes.get(mount.device)
        if probe is None or not probe.is_alive():
            probe = self._probes[mount.device] = _ConnectionProbe(mount.path)
            probe.start()
        probe.join(_ANSWER_S)
        return probe.is_dead


class _ConnectionProbe(threading.Thread):
    """Asks in a thread whether a mount's connection is gone, because statfs(2) may hang.

    Walking to a mount's root sends its server no request. A connection that is gone fails every
    request with ENOTCONN, and those in flight with ECONNABORTED (fs/fuse/dev.c).
    """

    def __init__(self, path: str) -> None:
        super().__init__(name="statfs", daemon=True)
        self._path = path
        self.is_dead = False

    def run(self) -> None:
        try:
            os.statvfs(self._path)
        except OSError as error:
            self.is_dead = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)


def _devices_in_pods(endings: Iterable[str]) -> set[str]:
    """Devices that some process sees mounted at another path than the node does.

    Args:
        endings: the node's paths, from the pod's own directory on. A process that has the kubelet's
            directory mounted anywhere sees them at paths that end like this.
    """
    endings = tuple(endings)
    namespaces = {os.readlink("/proc/self/ns/mnt")}
    devices = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            namespace = os.readlink(folder / "ns" / "mnt")
            if namespace in namespaces:
                continue
            seen = mounts.mounted(folder.name)
            namespaces.add(namespace)
            devices |= {
                mount.device
                for mount in seen
                if mounts.is_ours(mount) and not mount.path.endswith(endings)
            }
    return devices


class _CacheKeeper:
    """Keeps the node's cache within its budget.

    Args:
        folder: the cache's folder; None: no cache.
        size_bytes: its budget.
    """

    def __init__(self, folder: Path | None, size_bytes: int) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self._next_s = 0.0
        self._has_room = True

    def look(self) -> None:
        """Trim the cache when it is time to. The folder may have a million files."""
        if self._folder is None or time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + _TRIM_INTERVAL_S
        try:
            budget_bytes, evicted_bytes = node_folder.trim(self._folder, self._size_bytes)
        except OSError as error:
            logs.event(log, "not trimmed", logging.WARNING, folder=self._folder, why=error)
            return
        if self._has_room != bool(budget_bytes):
            self._has_room = bool(budget_bytes)
            what, level = "the disk has room for the node's cache again", logging.INFO
            if not budget_bytes:
                what, level = "the disk has no room for the node's cache", logging.WARNING
            logs.event(log, what, level, folder=self._folder)
        if evicted_bytes:
            logs.event(log, "trimmed the node's cache", folder=self._folder, bytes=evicted_bytes)


def run(
    root: Path,
    interval_s: float,
    *,
    once: bool = False,
    node_cache: Path | None = None,
    node_cache_bytes: int = 0,
) -> int:
    """Look when the mounts change, and every ``interval_s`` seconds; the exit status.

    Returns at SIGTERM or SIGINT. Changes within a second are handled together, and each look also
    ends overdue containers.

    Args:
        node_cache: folder of the cache that pods share; None: no such cache.
        node_cache_bytes: its budget.

    Raises:
        SidecarError: see :class:`Janitor`.
    """
    janitor = Janitor(root)
    keeper = _CacheKeeper(node_cache, node_cache_bytes)
    stopped, stop = socket.socketpair()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.send(b"."))
    logs.event(log, "looking after", root=root, interval_s=interval_s)
    with stopped, stop, open("/proc/self/mountinfo", "rb") as table:
        changes, end = select.poll(), select.poll()
        changes.register(table, select.POLLPRI)
        end.register(stopped, select.POLLIN)
        next_s = 0.0
        while True:
            overdue.end_overdue(str(root))
            if changes.poll(0) or time.monotonic() >= next_s:
                next_s = time.monotonic() + interval_s
                janitor.look()
                keeper.look()
            if once or end.poll(_TURN_S * 1000):
                return EXIT_OK
