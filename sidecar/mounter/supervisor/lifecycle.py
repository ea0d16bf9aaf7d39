"""preflight -> mount -> ready -> serve and heal -> drain -> unmount. Standard library only.

The order is a script (:meth:`Lifecycle.run`); what may happen at any moment (a message, a
death, a signal) is one method each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sidecar import logs, pod
from sidecar.errors import (
    EXIT_OK,
    EndpointUnreachable,
    HostError,
    MountFailed,
    NotSaved,
    ProbeTimeout,
    ReadyTimeout,
    SidecarError,
    StateUnusable,
    WorkerLost,
    by_code,
)
from sidecar.mounter.supervisor import path_checks
from sidecar.mounter.system import mounts, status
from sidecar.mounter.system.processes import Child, Exited, Processes, Said, describe_exit

log = logging.getLogger("sidecar.supervisor")

Spec = dict[str, Any]

_TURN_S = 1.0
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_RECENT_S = 10.0
_FREE_DEATHS = 10
_REMEMBERED_DEATHS = 100
_FAILED_RESUMES = 3
_NOBODY_S_FAULT = (-signal.SIGKILL, os.EX_OSERR)
"""How a worker ends that was killed, or found no memory (fuse/connection.py)."""
_ANSWER_S = 1.0
_WORKER_START_S = 3600.0
_REQUEST_BYTES = 1024 * 1024
_WORKER = "sidecar.mounter.worker.main"
_REPORTER_STARTS = 5
_LAST_WORDS_S = 8.0
"""Within the margin of the grace period (``times.grace_margin_s``)."""


class VolumeState:
    """What process 1 knows of one volume."""

    def __init__(self, volume: dict[str, Any]) -> None:
        self.kind: str = volume["kind"]
        self.name: str = volume["name"]
        self.path: str = volume["path"]
        self.read_only: bool = volume["read_only"]
        self.is_bucket: bool = volume["source"]["type"] == "store"
        self.source: str = (
            volume["source"].get("url")
            or volume["source"].get("claim")
            or volume["source"].get("host_path")
        )
        self.mountpoint: str = volume.get("mountpoint") or volume["path"]
        self.identity = f"{self.kind}-{quote(self.name, safe='')}"
        self.state = "starting"
        self.error: SidecarError | None = None
        self.failing: list[dict[str, Any]] = []  # calls to the store, as the worker reports them
        self.healed = {"resend": 0, "remount": 0}
        self.descriptor: int | None = None  # the connection, held while workers come and go
        self.can_resume = False
        self.resuming = False
        self.failed_resumes = 0
        self.crashed = False  # the last worker ended by itself
        self.worker: Child | None = None
        self.serving_since_s = 0.0
        self.deaths_s: deque[float] = deque(maxlen=_REMEMBERED_DEATHS)
        self.restart_at_s: float | None = None
        self.left: dict[str, int] | None = None  # while draining: files, and their bytes
        self.unsaved: list[dict[str, str]] = []
        self.unsaved_count = 0

    @property
    def label(self) -> str:
        """How logs, metrics and messages name it."""
        return f"{self.kind}/{self.name}"

    def pause_after_death(self, now_s: float) -> float:
        """How long to wait before the next worker: not at all, unless deaths come in a row.

        Programs are waiting for their reads meanwhile, so only a worker that dies and dies
        again is slowed down, up to a bound.
        """
        self.deaths_s.append(now_s)
        recent = sum(now_s - death_s < _RECENT_S for death_s in self.deaths_s)
        return min(_LONGEST_PAUSE_S, _PAUSE_S * (recent // _FREE_DEATHS) ** 2)

    def document(self) -> dict[str, Any]:
        """Its part of the status document."""
        error = self.error
        shown = self.failing[-1] if self.failing else None
        if error is not None:
            shown = {"code": error.code, "name": error.name, "message": error.message}
        return {
            "kind": self.kind,
            "name": self.name,
            "path": self.path,
            "source": self.source,
            "read_only": self.read_only,
            "state": self.state,
            "error": shown,
            "failing": self.failing,
            "worker_pid": self.worker.pid if self.worker and self.worker.running else None,
            "healed": self.healed if self.is_bucket else {},
            "left": self.left,
            "unsaved": self.unsaved,
            "unsaved_count": self.unsaved_count,
        }


class Stopped(Exception):
    """SIGTERM or SIGINT arrived before ready."""


class Lifecycle:
    """One run of the sidecar.

    Args:
        spec: the validated spec, as JSON gives it.
        spec_file: where workers read it.
        started_s: when the sidecar was started (monotonic), for the time to ready.
    """

    def __init__(self, spec: Spec, spec_file: str, started_s: float) -> None:
        self._spec = spec
        self._spec_file = spec_file
        self._started_s = started_s
        self._deadline_s = started_s + spec["times"]["ready_timeout_s"]
        self._volumes = [VolumeState(volume) for volume in spec["volumes"]]
        self._buckets = [volume for volume in self._volumes if volume.is_bucket]
        self._state = Path(spec["roots"]["state"])
        self._children = Processes()
        self._health: Child | None = None
        self._reporter: Child | None = None  # in a pod only
        self._reporter_starts = 0
        self._spare: Child | None = None  # a worker that has imported all and waits
        self._checks: dict[int, VolumeState] = {}
        self._shared: status.SharedDirectory | None = None
        self._made_directories: list[str] = []
        self._phase = "starting"
        self._published = True
        self._ready = False
        self._time_to_ready_s: float | None = None
        self._http_port: int | None = None
        self._stop_asked = False
        self._failure: SidecarError | None = None

    def run(self) -> int:
        """The whole life; returns the exit status of the contract."""
        try:
            try:
                self._prepare()
                self._preflight()
                self._mount_all()
                self._verify()
                self._become_ready()
            except Stopped:
                logs.event(log, "asked to stop before ready")
            else:
                try:
                    self._serve()
                except SidecarError as error:
                    # What programs wrote to mounts that work is saved all the same.
                    logs.event(log, "cannot go on", logging.ERROR, error=error.message)
                    return self._drain() or self._fail(error)
            return self._drain()
        except SidecarError as error:
            return self._fail(error)
        finally:
            self._tear_down()

    # --- the script ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Everything that needs no network: the host, the directories, what a crash left."""
        if pod.is_in_pod() and self._state.is_dir():
            # First of all, so that it can tell whatever comes; what an earlier container of
            # this pod had to say is told.
            (self._state / status.STATUS_FILE).unlink(missing_ok=True)
            self._start_reporter()
        if self._buckets:
            mounts.check_host()
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._state / "metrics", ignore_errors=True)
            self._shared = status.SharedDirectory(self._spec["roots"]["shared"])
            self._shared.remove(status.READY_FILE)
        except OSError as error:
            raise _unusable(error) from None
        for volume in self._buckets:
            if left := mounts.clear(volume.mountpoint):
                logs.event(log, "cleared stale mounts", volume=volume.label, count=left)
            self._make_mountpoint(volume)
            mounts.guard(volume.mountpoint)
        self._publish()
        http = self._spec["http"]
        self._health = self._children.start(
            "health",
            "sidecar.mounter.reporting.health",
            [str(self._state), http["host"], str(http["port"])],
        )

    def _start_reporter(self) -> None:
        self._reporter_starts += 1
        self._reporter = self._children.start(
            "reporter", "sidecar.mounter.reporting.reporter", [self._spec_file]
        )

    def _preflight(self) -> None:
        """Credentials and buckets really answer; hostPaths and claims are really there."""
        for volume in self._buckets:
            self._start_worker(volume, self._deadline_s - time.monotonic())
        for volume in self._volumes:
            if not volume.is_bucket:
                self._check(volume, write=not volume.read_only)
        self._turn_until(
            lambda: (
                self._http_port is not None
                and not self._checks
                and all(volume.state == "checked" for volume in self._volumes)
            )
        )

    def _mount_all(self) -> None:
        for volume in self._buckets:
            self._mount(volume)
        self._turn_until(lambda: all(volume.state == "serving" for volume in self._buckets))

    def _verify(self) -> None:
        """List every bucket through its mount, and make the run's outputs directory."""
        for volume in self._buckets:
            self._check(volume, write=False)
        self._turn_until(lambda: not self._checks)
        outputs_path = self._spec["outputs_path"]
        outputs = next((v for v in self._volumes if v.kind == "outputs"), None)
        if outputs is not None and outputs_path is not None and outputs_path.startswith("/"):
            access = self._spec["access"]
            # In a pod a bucket's path is the experiment's; here it is where it is mounted.
            root = outputs.mountpoint if outputs.is_bucket else outputs.path
            run_directory = root + outputs_path.removeprefix(outputs.path)

            def make() -> None:
                path_checks.make_run_directory(
                    root, run_directory, access["uid"], access["gid"], access["dir_mode"]
                )

            self._run_check(outputs, make)
            self._turn_until(lambda: not self._checks)

    def _become_ready(self) -> None:
        assert self._shared is not None
        self._ready = True
        self._phase = "ready"
        self._time_to_ready_s = time.monotonic() - self._started_s
        for volume in self._volumes:
            if not volume.is_bucket:
                volume.state = "serving"
        self._publish()
        try:
            self._shared.write(status.READY_FILE, f"{self._time_to_ready_s:.3f}\n")
        except OSError as error:
            raise _unusable(error) from None
        if self._buckets:
            self._spare = self._children.start("spare", _WORKER, [])
        logs.event(log, "ready", seconds=f"{self._time_to_ready_s:.3f}", port=self._http_port)

    def _serve(self) -> None:
        while not self._stop_asked:
            self._turn()

    def _drain(self) -> int:
        """Save everything within the grace period; the exit status says whether it was all.

        A worker that dies meanwhile is replaced, and its successor is asked again.
        """
        times = self._spec["times"]
        seconds = max(0.0, times["grace_s"] - times["grace_margin_s"])
        end_s = time.monotonic() + seconds
        self._phase = "draining"
        waiting = [v for v in self._buckets if self._ready or v.state == "serving"]
        if waiting:
            logs.event(log, "saving what is dirty", seconds=seconds)
        self._publish()
        while waiting and time.monotonic() < end_s + _ANSWER_S:
            for volume in waiting:
                if volume.state == "serving" and volume.worker is not None:
                    volume.state = "draining"
                    left_s = max(0.0, end_s - time.monotonic())
                    volume.worker.channel.send({"do": "drain", "seconds": left_s})
            self._turn(end_s + _ANSWER_S)
            waiting = [volume for volume in waiting if volume.state != "drained"]
        for volume in waiting:
            volume.error = volume.error or WorkerLost(f"no answer within {seconds:g} s")
            volume.unsaved_count += 1
            volume.unsaved = [
                {"key": "(unknown)", "code": volume.error.code, "why": volume.error.what}
            ]
        count = sum(volume.unsaved_count for volume in self._buckets)
        if not count:
            self._phase = "stopped"
            return EXIT_OK
        return self._report_unsaved(count)

    # --- ends -------------------------------------------------------------------------------

    def _report_unsaved(self, count: int) -> int:
        error = NotSaved(
            f"{count} file(s) are only in the spool `{self._state}`",
            "start the sidecar again with the same state directory to finish",
        )
        lines = [error.line()]
        for volume in self._buckets:
            for file in volume.unsaved:
                reason = f" ({file['code']}: {file['why']})" if file["code"] else " (no time left)"
                lines.append(f"not saved: {volume.label}: {file['key']}{reason}")
        self._phase = "stopped"
        self._say(lines)
        return error.exit_status

    def _fail(self, error: SidecarError) -> int:
        self._phase = "failed"
        self._failure = error
        self._say([error.line()])
        return error.exit_status

    def _say(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
        status.write_termination_message(self._spec["roots"]["termination_message"], text + "\n")

    def _tear_down(self) -> None:
        """Nothing stays: no mount, no process, no ready file, no empty mountpoint."""
        self._ready = False
        if self._shared is not None:
            self._shared.remove(status.READY_FILE)
        for child_pid in list(self._checks):
            volume = self._checks.pop(child_pid)
            logs.event(log, "check abandoned", logging.WARNING, volume=volume.label)
        for volume in self._buckets:
            volume.restart_at_s = None
            self._unmount(volume)
        workers = [v.worker for v in self._buckets if v.worker is not None and v.worker.running]
        if self._spare is not None and self._spare.running:
            workers.append(self._spare)
        for worker in workers:
            worker.channel.send({"do": "leave"})
        self._children.end(workers)
        for volume in self._buckets:
            mounts.clear(volume.mountpoint)  # what a worker managed to mount meanwhile
            volume.state = "stopped"
        if self._shared is not None or self._reporter is not None:
            self._publish()
        if self._reporter is not None:
            # All is saved and unmounted, so this delays nothing that anybody waits for.
            self._reporter.channel.send({"do": "leave"})
            self._children.end([self._reporter], _LAST_WORDS_S)
        self._children.end_all()
        for directory in reversed(self._made_directories):
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    # --- events -------------------------------------------------------------------------------

    def _turn_until(self, done: Callable[[], bool]) -> None:
        """Turn the loop until ``done``, a failure, a signal, or the deadline of ready."""
        while not done():
            if self._stop_asked:
                raise Stopped
            if time.monotonic() >= self._deadline_s:
                raise self._timeout()
            self._turn(self._deadline_s)

    def _turn(self, deadline_s: float = float("inf")) -> None:
        wake_s = min(time.monotonic() + _TURN_S, deadline_s)
        for volume in self._buckets:
            if volume.restart_at_s is not None:
                wake_s = min(wake_s, volume.restart_at_s)
        for event in self._children.events(wake_s):
            if isinstance(event, Said):
                self._on_message(event)
            elif isinstance(event, Exited):
                self._on_exit(event)
            else:
                self._stop_asked = True
        if not self._published:
            self._publish()
        now_s = time.monotonic()
        for volume in self._buckets:
            if volume.restart_at_s is not None and volume.restart_at_s <= now_s:
                volume.restart_at_s = None
                self._start_worker(volume, _WORKER_START_S)

    def _on_message(self, said: Said) -> None:
        event = said.message["event"]
        if said.child is self._health:
            self._on_health(event, said)
            return
        if said.child is self._reporter:
            logs.event(log, event)
            self._stop_asked = True  # the pod's other containers have ended
            return
        volume = self._checks.get(said.child.pid)
        if volume is not None:
            self._on_checked_path(volume, event, said)
            return
        volume = next((v for v in self._buckets if v.worker is said.child), None)
        if volume is not None:
            self._on_worker(volume, event, said)

    def _on_health(self, event: str, said: Said) -> None:
        if event == "ping":
            said.child.channel.send({"pong": said.message["number"]})
        elif event == "listening":
            self._http_port = said.message["port"]
            self._publish()
        elif event == "failed":
            raise _error(said.message)

    def _on_checked_path(self, volume: VolumeState, event: str, said: Said) -> None:
        del self._checks[said.child.pid]
        if event == "failed":
            raise _of_volume(volume, _error(said.message))
        if not volume.is_bucket:
            volume.state = "checked"

    def _on_worker(self, volume: VolumeState, event: str, said: Said) -> None:
        if event == "probing":
            volume.state = "probing"
        elif event == "waiting":
            volume.error = _error(said.message)
        elif event == "checked":
            volume.state, volume.error = "checked", None
            if self._ready:
                self._mount_again(volume)
        elif event == "serving":
            self._on_serving(volume, can_resume=said.message["can_resume"])
        elif event == "failed":
            volume.error = _error(said.message)
            if not self._ready and self._phase != "draining":
                raise _of_volume(volume, volume.error)
        elif event == "failing":
            volume.failing = said.message["failing"]
        elif event == "draining":
            files, size_bytes = said.message["files"], said.message["size_bytes"]
            volume.left = {"files": files, "size_bytes": size_bytes}
            logs.event(log, "saving", volume=volume.label, files_left=files, bytes_left=size_bytes)
        elif event == "drained":
            volume.state = "drained"
            volume.left = None
            volume.unsaved = said.message["unsaved"]
            volume.unsaved_count = said.message["unsaved_count"]
        self._publish()

    def _on_serving(self, volume: VolumeState, *, can_resume: bool) -> None:
        volume.state, volume.error = "serving", None
        volume.serving_since_s = time.monotonic()
        volume.can_resume = can_resume
        healed: dict[str, Any] = {}
        if self._ready:
            healed["healed"] = "resend" if volume.resuming else "remount"
            volume.healed[healed["healed"]] += 1
        volume.resuming = False
        volume.failed_resumes = 0
        if volume.descriptor is not None:
            mounts.raise_readahead(volume.mountpoint)
        logs.event(log, "serving", volume=volume.label, path=volume.mountpoint, **healed)

    def _on_exit(self, exited: Exited) -> None:
        if exited.child is self._health:
            self._health = None
            if not self._ready:
                raise HostError(f"the health process ended ({describe_exit(exited.status)})")
            http = self._spec["http"]
            self._health = self._children.start(
                "health",
                "sidecar.mounter.reporting.health",
                [str(self._state), http["host"], str(self._http_port)],
            )
            return
        if exited.child is self._reporter:
            self._reporter = None
            how = describe_exit(exited.status)
            logs.event(log, "the reporter ended", logging.WARNING, how=how)
            if self._reporter_starts < _REPORTER_STARTS:
                self._start_reporter()
            return
        checked = self._checks.pop(exited.child.pid, None)
        if checked is not None:
            raise _of_volume(
                checked, ProbeTimeout(f"the check ended ({describe_exit(exited.status)})")
            )
        if exited.child is self._spare:
            self._spare = None  # the next one is started when a worker is needed
            return
        volume = next((v for v in self._buckets if v.worker is exited.child), None)
        if volume is not None and volume.state not in ("drained", "stopped"):
            self._on_worker_lost(volume, exited)

    def _on_worker_lost(self, volume: VolumeState, exited: Exited) -> None:
        how = describe_exit(exited.status)
        lost = WorkerLost(f"the worker ended: {how}")
        if not self._ready:
            raise _of_volume(volume, lost)
        logs.event(log, "worker lost", logging.WARNING, volume=volume.label, how=how)
        now_s = time.monotonic()
        pause_s = volume.pause_after_death(now_s)
        volume.crashed = exited.status not in _NOBODY_S_FAULT
        if volume.resuming:
            volume.failed_resumes += 1
        if not volume.can_resume or volume.failed_resumes >= _FAILED_RESUMES:
            # The next worker mounts anew. Who waits for an answer gets an error now.
            self._unmount(volume, keep_guard=True)
            volume.can_resume = False
        volume.state = "restarting"
        volume.error = volume.error or lost
        volume.restart_at_s = now_s + pause_s
        self._publish()

    # --- acts -----------------------------------------------------------------------------------

    def _start_worker(self, volume: VolumeState, seconds: float) -> None:
        worker, self._spare = self._spare, None
        if worker is None:
            worker = self._children.start("worker", _WORKER, [])
        volume.worker = worker
        volume.resuming = volume.can_resume
        descriptors = (volume.descriptor,) if volume.resuming and volume.descriptor else ()
        worker.channel.send(
            {
                "do": "serve",
                "spec": self._spec_file,
                "identity": volume.identity,
                "kind": volume.kind,
                "name": volume.name,
                "seconds": seconds,
                "crashed": volume.crashed,
                "failing": volume.failing,
                # What was verified once need not be written again by each successor.
                "writes": not (self._ready or volume.read_only),
            },
            descriptors,
        )
        if self._ready:
            self._spare = self._children.start("spare", _WORKER, [])

    def _mount(self, volume: VolumeState) -> None:
        volume.state = "mounting"
        assert volume.worker is not None
        if self._spec["transport"] == "libfuse":
            volume.worker.channel.send({"do": "mount"})
            return
        volume.descriptor = os.open(mounts.FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            mounts.mount_fuse(
                volume.descriptor,
                volume.mountpoint,
                volume.source,
                read_only=volume.read_only,
                max_read_bytes=_REQUEST_BYTES,
            )
        except MountFailed as error:
            raise _of_volume(volume, error) from None
        volume.worker.channel.send({"do": "mount"}, (volume.descriptor,))

    def _mount_again(self, volume: VolumeState) -> None:
        """Mount for a worker that replaces a dead one; where that fails, another one tries."""
        assert volume.worker is not None
        try:
            self._mount(volume)
        except MountFailed as error:
            logs.event(log, "not mounted again", logging.ERROR, volume=volume.label, why=error.what)
            volume.error = error
            volume.worker.channel.send({"do": "leave"})

    def _unmount(self, volume: VolumeState, *, keep_guard: bool = False) -> None:
        """Detach the mount and drop the connection; the kernel then aborts what waits."""
        mounts.clear(volume.mountpoint, keep_guard=keep_guard)
        if volume.descriptor is not None:
            os.close(volume.descriptor)
            volume.descriptor = None

    def _make_mountpoint(self, volume: VolumeState) -> None:
        path = Path(volume.mountpoint)
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        try:
            for directory in reversed(missing):
                directory.mkdir()
                self._made_directories.append(str(directory))
        except OSError as error:
            raise StateUnusable(
                f"cannot make the mountpoint `{volume.mountpoint}`: {error.strerror}"
            ) from None

    def _check(self, volume: VolumeState, *, write: bool) -> None:
        path = volume.path if not volume.is_bucket else volume.mountpoint
        self._run_check(volume, lambda: path_checks.check_directory(path, write=write))

    def _run_check(self, volume: VolumeState, function: Callable[[], None]) -> None:
        child = self._children.run(f"check {volume.label}", function)
        self._checks[child.pid] = volume

    def _timeout(self) -> SidecarError:
        """Which volume kept ready from happening, and the last thing it complained about."""
        seconds = self._spec["times"]["ready_timeout_s"]
        late = [v for v in self._volumes if v.state not in ("checked", "serving")]
        late.extend(v for v in self._checks.values() if v not in late)
        for volume in late:
            if volume.error is not None:
                return _of_volume(volume, volume.error)
            if volume.state == "probing":  # its first request is still under way
                silent = EndpointUnreachable(
                    f"the store did not answer within {seconds:g} s",
                    "check the endpoint's address and that the pod's network lets it through",
                )
                return _of_volume(volume, silent)
        names = ", ".join(volume.label for volume in late) or "the sidecar"
        return ReadyTimeout(
            f"not ready after {seconds:g} s: {names}", "a hanging network path, perhaps"
        )

    def _publish(self) -> None:
        """Write the status document for /statusz, for the experiment, for whoever looks.

        A full disk ends nothing: the document is written again at the next turn of the loop.
        """
        failure = self._failure
        text = status.dump(
            {
                "version": 1,
                "phase": self._phase,
                "ready": self._ready,
                "time_to_ready_seconds": self._time_to_ready_s,
                "http_port": self._http_port,
                "run": self._spec["run"],
                "transport": self._spec["transport"],
                "error": {"code": failure.code, "name": failure.name, "message": failure.message}
                if failure is not None
                else None,
                "volumes": [volume.document() for volume in self._volumes],
            }
        )
        try:
            status.write_private(self._state / status.STATUS_FILE, text)
            if self._shared is not None:
                self._shared.write(status.STATUS_FILE, text)
        except OSError as error:
            if self._published:
                logs.event(log, "status not written", logging.WARNING, why=error.strerror)
            self._published = False
        else:
            self._published = True


def _error(message: dict[str, Any]) -> SidecarError:
    return by_code(message["code"], message["what"], message["hint"])


def _unusable(error: OSError) -> StateUnusable:
    return StateUnusable(
        f"cannot prepare `{error.filename}`: {error.strerror}",
        "the state and shared directories must be writable",
    )


def _of_volume(volume: VolumeState, error: SidecarError) -> SidecarError:
    return type(error)(f"volume {volume.label} ({volume.source}): {error.what}", error.hint)
