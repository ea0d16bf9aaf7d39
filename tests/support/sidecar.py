"""`sidecar mount` as a child process, run as in a container."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sidecar.contract.options import Options, Times, TransportName
from sidecar.contract.spec import (
    Access,
    Http,
    PersistenceSpec,
    Roots,
    StoreName,
    StoreSource,
    Volume,
)
from sidecar.mounter.system import mounts
from tests.support import lock_table
from tests.support.waiting import wait_until

READY_TIMEOUT_S = 300.0
_POLL_S = 0.02
_RUN_VARIABLE = "MOUNT_SIDECAR_TEST_RUN"


def bucket_volume(
    name: str,
    path: Path,
    store: StoreName,
    url: str,
    *,
    kind: str = "data",
    read_only: bool = False,
    prefix: str = "",
    secret: str | None = None,
) -> Volume:
    """A bucket volume whose secret is ``<secrets>/<secret or name>/key.json``."""
    bucket = url.partition("://")[2].strip("/").partition("/")[0]
    return Volume(
        name=name,
        kind="outputs" if kind == "outputs" else "data",
        path=str(path),
        read_only=read_only,
        source=StoreSource(
            store=store,
            url=url,
            bucket=bucket,
            prefix=prefix,
            secret=secret or name,
            secret_key="key.json",
        ),
    )


def _with_options(
    volume: Volume, options: Options | None, transport: TransportName | None
) -> Volume:
    options = options or volume.options
    if transport is not None:
        options = replace(options, transport=transport)
    return replace(volume, options=options)


class Sidecar:
    """One run of `sidecar mount` with every root below ``directory``.

    Args:
        volumes: what the spec selects.
        secrets: secret name to the content of its ``key.json``.
        prefix: words before the command, of a program that execs it, such as setpriv.
        http: of the spec; by default a free port of 127.0.0.1.
        options: of every volume; by default each has its own.
        transport: instead of that in the options.
        settings: other fields of the spec, such as ``times``.
    """

    def __init__(
        self,
        directory: Path,
        volumes: Iterable[Volume],
        *,
        secrets: Mapping[str, str] | None = None,
        outputs_path: Path | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
        http: Http | None = None,
        options: Options | None = None,
        transport: TransportName | None = None,
        **settings: Any,
    ) -> None:
        self.directory = directory
        self.shared = directory / "shared"
        self.state = directory / "state"
        self.termination_message = directory / "termination-log"
        self.log_file = directory / "sidecar.log"
        self.output_file = directory / "sidecar.out"
        for name, content in (secrets or {}).items():
            folder = directory / "secrets" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "key.json").write_text(content)
        settings.setdefault("times", Times(ready_timeout_s=30))
        settings.setdefault("access", Access(uid=os.getuid(), gid=os.getgid()))
        self.spec = PersistenceSpec(
            volumes=tuple(_with_options(volume, options, transport) for volume in volumes),
            outputs_path=str(outputs_path) if outputs_path else None,
            roots=Roots(
                shared=str(self.shared),
                secrets=str(directory / "secrets"),
                state=str(self.state),
                termination_message=str(self.termination_message),
            ),
            http=http or Http(host="127.0.0.1", port=0),
            **settings,
        )
        self.spec_file = directory / "spec.json"
        self.spec_text: str | None = self.spec.to_json()  # None: no file is written.
        self.prefix = prefix
        # Every process of this run inherits the variable, so orphans are found too.
        self._environment = {
            **os.environ,
            **lock_table.environment(),
            **(environment or {}),
            _RUN_VARIABLE: str(directory),
        }
        self._process: subprocess.Popen[bytes] | None = None

    # --- life ---------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> Self:
        """Start it and, by default, wait until it is ready."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.termination_message.write_bytes(b"")  # The kubelet creates it.
        if self.spec_text is not None:
            self.spec_file.write_text(self.spec_text)
        command = [sys.executable, "-m", "sidecar", "mount", "--spec", str(self.spec_file)]
        if (
            self.spec_text == self.spec.to_json()
        ):  # as an injector starts it, in a third of the time
            command += ["--spec-sha256", hashlib.sha256(self.spec_text.encode()).hexdigest()]
        with self.log_file.open("ab") as log, self.output_file.open("ab") as output:
            self._process = subprocess.Popen(
                [*self.prefix, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait for the ready file. Raises AssertionError with the log."""
        process = self._process
        assert process is not None
        wait_until(
            (self.shared / ".sidecar" / "ready").exists,
            lambda: f"ready; exit status {process.returncode}:\n{self.log()}",
            timeout_s,
            running=lambda: process.poll() is None,
            poll_s=_POLL_S,
        )

    def wait_for(self, done: Callable[[], object], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when ``done``. Raises AssertionError with the log."""
        wait_until(done, self.log, timeout_s, poll_s=_POLL_S)

    def wait(self, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Wait for its end; the exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def stop(self, timeout_s: float = READY_TIMEOUT_S) -> int:
        """Send SIGTERM and wait; the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL all its processes and wait for their end, as the end of a container does."""
        assert self._process is not None
        with contextlib.ExitStack() as opened:
            processes: dict[int, int] = {}
            # Again until nobody is new: a worker that runs on would save and unmount.
            while new := set(self.processes()) - processes.keys():
                for pid in new:
                    with contextlib.suppress(ProcessLookupError):
                        processes[pid] = os.pidfd_open(pid)
                        opened.callback(os.close, processes[pid])
                        signal.pidfd_send_signal(processes[pid], signal.SIGSTOP)
            for process in processes.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
            for process in processes.values():
                ended = select.poll()  # select(2) takes no descriptor above 1023
                ended.register(process, select.POLLIN)
                ended.poll()  # its files are closed, and connections gone
        self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clean_up()

    def clean_up(self) -> None:
        """End every process and detach every mount, whatever the test left."""
        if self._process is not None and self._process.poll() is None:
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()
        for path in self.mounted():
            mounts.clear(path)

    # --- looking at it ------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        assert self._process is not None
        return self._process.pid

    def children(self) -> list[int]:
        """Process ids of the supervisor's children."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in path.read_text().split()] if path.exists() else []

    def children_named(self, name: str) -> list[int]:
        """Those with this name: worker, health, reporter, fork-server."""
        found = []
        for pid in self.children():
            with contextlib.suppress(OSError):  # it may end meanwhile
                if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n":
                    found.append(pid)
        return found

    def processes(self) -> list[int]:
        """Process ids of this run, orphans included."""
        return processes_with(_RUN_VARIABLE, str(self.directory))

    def mounted(self) -> list[str]:
        """Mount points below its directory or at a volume's path."""
        paths = {volume.mountpoint or volume.path for volume in self.spec.buckets}
        below = f"{self.directory}/"
        return [m.path for m in mounts.mounted() if m.path in paths or m.path.startswith(below)]

    def status(self) -> dict[str, Any]:
        """The status document."""
        document: dict[str, Any] = json.loads((self.state / "status.json").read_text())
        return document

    def volume_status(self, name: str) -> dict[str, Any]:
        """One volume's part of the status document."""
        volumes: list[dict[str, Any]] = self.status()["volumes"]
        return next(volume for volume in volumes if volume["name"] == name)

    def log(self) -> str:
        """Its standard error so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def said(self) -> list[str]:
        """The lines for the user: those on standard error that are not log lines."""
        return [line for line in self.log().splitlines() if not line.startswith("time=")]

    def get(self, page: str) -> tuple[int, str]:
        """(HTTP status, body) of a page."""
        url = f"http://127.0.0.1:{self.status()['http_port']}{page}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have the labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(
                f'{key}="{wanted}"' in head for key, wanted in labels.items()
            ):
                total += float(value)
        return total


def processes_with(variable: str, value: str) -> list[int]:
    """Ids of processes that were started with this environment variable."""
    wanted = f"{variable}={value}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            # It may end meanwhile; a zombie's environment is empty or unreadable.
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found
