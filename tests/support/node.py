"""The nodes of a cluster, seen from the janitor's pods: their mounts and processes."""

from __future__ import annotations

import json

from tests.support.cluster import Cluster

_PYTHON = "/opt/sidecar/bin/python"
_CACHE = "/var/cache/sidecar/node"
_MOUNTS = """
import json
lines = [line.split() for line in open("/proc/self/mountinfo")]
print(json.dumps([fields[4] for fields in lines]))
"""
_HAS_DIRECTORY = """
import os, sys
places = [line.split()[4] for line in open("/proc/self/mountinfo")]
print(any(os.path.lexists(f"{place}/{sys.argv[1]}") for place in places if place.endswith("/pods")))
"""
_KILL = """
import os, signal, sys
pod, text, number = sys.argv[1:]
hits = 0
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        groups = open(f"/proc/{pid}/cgroup").read().replace("_", "-")
        command = open(f"/proc/{pid}/comm").read() + open(f"/proc/{pid}/cmdline").read()
        command = command.replace("\\0", " ")
    except OSError:
        continue
    if pod in groups and text in command:
        os.kill(int(pid), int(number))
        hits += 1
print(hits)
"""


class Nodes:
    """All nodes of a cluster whose janitor runs.

    Args:
        cluster: its administrator.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def mounts_of(self, pod_uid: str) -> list[str]:
        """Paths, on any node, of the sidecar's mounts in the pod's directory.

        The volumes of the kubelet itself are left out.
        """
        found = []
        for janitor in self._janitors():
            paths = json.loads(self._python(janitor, _MOUNTS))
            found += [
                path
                for path in paths
                if f"/{pod_uid}/" in path and ("-shared/" in path or "volume-subpaths" in path)
            ]
        return found

    def has_directory(self, pod_uid: str) -> bool:
        """Whether some node still has the pod's directory, with whatever is in it."""
        return any(
            self._python(janitor, _HAS_DIRECTORY, pod_uid) == "True\n"
            for janitor in self._janitors()
        )

    def kill(self, pod_uid: str, command: str, number: int = 9) -> int:
        """Signal the pod's processes that have ``command`` in their command line; how many.

        The line comes after the process's name and a line break.
        """
        return sum(
            int(self._python(janitor, _KILL, pod_uid, command, str(number)))
            for janitor in self._janitors()
        )

    def trim_cache(self, size: str) -> None:
        """Have the janitors look at the nodes' caches once, as with this budget."""
        options = "--once", f"--node-cache={_CACHE}", f"--node-cache-size={size}"
        for janitor in self._janitors():
            root = self._root(janitor)
            self._cluster.kubectl(
                *("-n", "mount-sidecar", "exec", janitor, "--"),
                *("sidecar", "janitor", "--root", root, *options),
            )

    def empty_cache(self) -> None:
        """Empty the nodes' caches. None of their pods may run."""
        program = "import os, shutil, sys\n"
        program += "for name in os.listdir(sys.argv[1]):\n"
        program += "    path = os.path.join(sys.argv[1], name)\n"
        program += "    shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)\n"
        for janitor in self._janitors():
            self._python(janitor, program, _CACHE)

    def cached_bytes(self) -> int:
        """How many bytes the nodes' caches occupy on disk."""
        program = "import sys; from sidecar.mounter.cache.cache_folder import occupied_bytes; "
        program += "from pathlib import Path; print(occupied_bytes(Path(sys.argv[1])))"
        return sum(int(self._python(janitor, program, _CACHE)) for janitor in self._janitors())

    def _root(self, janitor: str) -> str:
        pod = self._cluster.get("-n", "mount-sidecar", "pod", janitor)
        arguments: list[str] = pod["spec"]["containers"][0]["args"]
        return arguments[arguments.index("--root") + 1]

    def _janitors(self) -> list[str]:
        selector = "app.kubernetes.io/name=mount-sidecar-janitor"
        found = self._cluster.get("-n", "mount-sidecar", "pods", "-l", selector)["items"]
        return [pod["metadata"]["name"] for pod in found]

    def _python(self, janitor: str, program: str, *arguments: str) -> str:
        command = "exec", janitor, "--", _PYTHON, "-c", program, *arguments
        return self._cluster.kubectl("-n", "mount-sidecar", *command)
