"""A pytest plugin: the run fails if it leaves a FUSE mount or a process behind.

Every process that a test starts inherits a variable with the session's value. So orphans are
found too, and processes of another run on this machine are not. Sockets that this process
still listens on are found as well.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from sidecar.mounter.system import mounts
from tests.support.sidecar import processes_with

_SESSION_VARIABLE = "MOUNT_SIDECAR_TEST_SESSION"
_LISTENING = "0A"
_KEY = "leftovers"


def pytest_configure(config: pytest.Config) -> None:
    """Set the variable that identifies this session's processes."""
    os.environ[_SESSION_VARIABLE] = uuid.uuid4().hex


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Search for leftovers after all fixtures have ended."""
    found = session.config.stash.setdefault(_FOUND, [])
    found += leftovers(session.config)
    if hasattr(session.config, "workeroutput"):  # A process of pytest-xdist, which cannot print.
        session.config.workeroutput[_KEY] = found
    if found:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Collect what a process of pytest-xdist found."""
    found = getattr(node, "workeroutput", {}).get(_KEY, [])
    node.config.stash.setdefault(_FOUND, []).extend(found)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what was left."""
    for line in config.stash.get(_FOUND, []):
        terminalreporter.write_line(f"LEFT BEHIND: {line}", red=True)


def leftovers(config: pytest.Config) -> list[str]:
    """This session's leftovers: a line for each mount, process and listening socket."""
    factory: pytest.TempPathFactory | None = getattr(config, "_tmp_path_factory", None)
    found = []
    if factory is not None:
        below = f"{factory.getbasetemp()}/"
        found += [
            f"mount {mount.fstype} at {mount.path}"
            for mount in mounts.mounted()
            if mount.path.startswith(below)
        ]
    for pid in processes_with(_SESSION_VARIABLE, os.environ[_SESSION_VARIABLE]):
        if pid != os.getpid():
            found.append(f"process {pid}: {_command(pid)}")
    found += [f"listening socket, port {port}" for port in _listening_ports()]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return "gone meanwhile"


def _listening_ports() -> list[int]:
    """TCP ports that this process listens on (proc_net_tcp(5))."""
    own = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            own.add(os.readlink(descriptor))
        except OSError:
            continue  # The descriptor of the listing itself.
    ports = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and f"socket:[{fields[9]}]" in own:
                ports.append(int(fields[1].rpartition(":")[2], 16))
    return ports


_FOUND: pytest.StashKey[list[str]] = pytest.StashKey()
