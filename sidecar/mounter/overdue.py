"""Ends containers that outlive their own grace period, as a kubelet would: by SIGKILL.

A kubelet has one grace period for all containers of a pod. A pod with the sidecar has a longer one
than its experiment, for saving. When the experiment's own is over, process 1 of the sidecar writes
the names of the experiment's containers into the state directory.

The kernel and the kubelet, not the file, say which processes belong to such a container: its
control group is that of the pod in whose directory the file is, and the kubelet's directory of the
container (``pods/UID/containers/NAME``, for the termination message) is mounted for it. So whatever
the file says, nothing outside the pod is ended, nor the pod's sidecar. Standard library only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sidecar import logs
from sidecar.contract.pod import CONTAINER_NAME, OVERDUE_FILE, RESERVED_PREFIX, STATE_SUFFIX
from sidecar.mounter.system import mounts, status

log = logging.getLogger("sidecar.janitor")

_STATE: Final = f"volumes/kubernetes.io~empty-dir/{RESERVED_PREFIX}{STATE_SUFFIX}"
"""The volume below a pod's directory, where the kubelet has it."""
_UID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_GROUP: Final = re.compile(r"(?:^|-)pod([0-9a-f_-]{36})(?:\.slice)?$")
"""A pod's part of a control group's path, by the driver `cgroupfs` or `systemd`."""
_CONTAINER: Final = re.compile(rf"/pods/({_UID})/containers/([a-z0-9-]+)/[^/]+$")


def end_overdue(root: str) -> None:
    """End the overdue containers of all pods of the node.

    Args:
        root: the kubelet's directory of pods.
    """
    overdue = {
        uid: status.read_overdue(f"{root}/{uid}/{_STATE}") - {CONTAINER_NAME}
        for uid in os.listdir(root)
        if os.path.lexists(f"{root}/{uid}/{_STATE}/{OVERDUE_FILE}")
    }
    if not overdue:
        return
    ended: Counter[tuple[str, str]] = Counter()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # the process has ended meanwhile
                ended.update(_end(int(folder.name), overdue))
    for (uid, name), count in ended.items():
        what = "ended what outlived its grace period"
        logs.event(log, what, pod=uid, container=name, processes=count)


def _end(pid: int, overdue: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Kill a process if it is overdue. Raises OSError.

    Returns:
        Its pod and container; empty if it goes on.
    """
    descriptor = os.pidfd_open(pid)  # held, so that the process that is checked is killed
    try:
        pods = _pods(Path(f"/proc/{pid}/cgroup").read_text())
        if len(pods) != 1 or pods.isdisjoint(overdue):
            return set()
        seen = [_CONTAINER.search(mount.root) for mount in mounts.mounted(str(pid))]
        containers = {(match[1], match[2]) for match in seen if match}
        asked = {(uid, name) for uid in pods for name in overdue[uid]}
        if len(containers) != 1 or not containers <= asked:
            return set()
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        return containers
    finally:
        os.close(descriptor)


def _pods(groups: str) -> set[str]:
    """UIDs of the pods whose control groups contain a process: one, or none.

    Args:
        groups: its /proc/PID/cgroup. Below a pod's group, names are the container's choice.
    """
    outermost = (
        next(filter(None, map(_GROUP.search, line.split("/"))), None)
        for line in groups.splitlines()
    )
    return {match[1].replace("_", "-") for match in outermost if match}
