"""Owns all that the demo starts and creates, and removes it."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sidecar.demo.programs import Program
from sidecar.demo.signals import StopSignals
from sidecar.mounter.system.mounts import mounted, unmount


class Workspace:
    """A temporary directory and the programs that work in it.

    Leaving it ends the programs, the last one first, detaches mounts left below the directory, and
    removes the directory.

    Args:
        signals: checked in every wait.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self._programs: list[Program] = []

    def __enter__(self) -> Workspace:
        self.path = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self._programs):
            program.stop()
        for mount in reversed(mounted()):
            if mount.path.startswith(f"{self.path}/"):
                unmount(mount.path)
        shutil.rmtree(self.path)

    def directory(self, name: str) -> Path:
        """A new directory below the workspace."""
        path = self.path / name
        path.mkdir(parents=True)
        return path

    def start(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        output: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Start a program; the arguments are those of :class:`sidecar.demo.programs.Program`."""
        program = Program(name, command, log=log, output=output, env=env, check=self.signals.check)
        self._programs.append(program)
        return program


def free_port() -> int:
    """A free TCP port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
