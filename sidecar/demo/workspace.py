"""What the demo starts and makes, and the certainty that none of it stays."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from sidecar.demo.signals import StopSignals

_STOP_TIMEOUT_S = 30.0


class Workspace:
    """A temporary directory and the processes that work in it.

    Leaving it ends the processes, the last started first, detaches what is still mounted
    below the directory and removes it.
    """

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Workspace:
        with self._signals.shielded():
            self.path = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
        return self

    def __exit__(self, *_: object) -> None:
        with self._signals.shielded():
            for process in reversed(self._processes):
                self.stop(process)
            for mountpoint in _mounts_below(self.path):
                subprocess.run(["umount", "--lazy", mountpoint], check=True)
            shutil.rmtree(self.path)

    def directory(self, name: str) -> Path:
        """A new directory below the workspace."""
        path = self.path / name
        path.mkdir(parents=True)
        return path

    def start(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        pipe: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a program that ends with the demo, even when the demo is killed.

        Args:
            command: the program and its arguments.
            log: where its outputs go.
            env: its whole environment, by default this process's.
            pipe: standard output is a pipe instead.
        """
        # setpriv(1): the kernel sends SIGTERM should this process vanish without a word.
        # A session of its own: Ctrl-C in the terminal is for the demo, which ends its
        # programs in the right order (the sidecar saves to a server that is still there).
        with self._signals.shielded():
            with log.open("ab") as sink:
                process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *map(str, command)],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipe else sink,
                    stderr=sink,
                    start_new_session=True,
                    text=True,
                )
            self._processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[str]) -> int:
        """SIGTERM, and after 30 s SIGKILL to its whole session; returns the exit status."""
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _mounts_below(path: Path) -> list[str]:
    """Mount points below ``path``, innermost first (proc_pid_mountinfo(5), field 5)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split(" ")[4] for line in lines]
    return [point for point in reversed(points) if point.startswith(f"{path}/")]
