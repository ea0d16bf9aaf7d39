"""preflight -> mount -> ready -> serve and heal -> drain -> unmount. Standard library only.

The order is a script (:meth:`Lifecycle.run`). :mod:`.volume` has the states of one volume.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Literal

from sidecar import logs
from sidecar.contract import pod
from sidecar.contract.spec import PersistenceSpec
from sidecar.errors import (
    EXIT_OK,
    HostError,
    NotSaved,
    ProbeTimeout,
    SidecarError,
    from_message,
)
from sidecar.http.listening import listen
from sidecar.mounter.supervisor import path_checks, preparation
from sidecar.mounter.supervisor.forking import ForkServer
from sidecar.mounter.supervisor.hang_watch import HangWatch
from sidecar.mounter.supervisor.pod_end import PodEnd, unsaved_lines
from sidecar.mounter.supervisor.retries import Retries
from sidecar.mounter.supervisor.volume import RestartDelay, SupervisedBucket, SupervisedVolume
from sidecar.mounter.supervisor.waiting import StartWait
from sidecar.mounter.supervisor.warm_up_process import WarmUpProcess
from sidecar.mounter.system import directories, hardening, mounts, status
from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.processes import Child, ChildEnded, Ending, MessageReceived, Processes
from sidecar.mounter.system.shortage import lacks_resources

log = logging.getLogger("sidecar.supervisor")

_TURN_S: Final = 1.0
_ANSWER_S: Final = 1.0
"""The least wait after the time to save is over. A worker copies what is in memory meanwhile."""
_TEAR_DOWN_S: Final = 2.5
"""Part of the grace period's margin, for ending workers and unmounting."""
_MOST_REPORTER_STARTS: Final = 5
_LAST_REPORTS_S: Final = 8.0
"""Within the margin of the grace period (``times.grace_margin_s``)."""
_LAST_UNMOUNTS_S: Final = 5.0
"""For unmounting, if the kernel lacks what that takes."""


class Stopped(Exception):
    """SIGTERM or SIGINT arrived before ready."""


class Lifecycle:
    """One run of the sidecar.

    Args:
        spec: the spec.
        started_s: when the sidecar was started (monotonic), for the time to ready.
    """

    def __init__(self, spec: PersistenceSpec, started_s: float) -> None:
        self._spec = spec
        self._started_s = started_s
        self._deadline_s = started_s + spec.times.ready_timeout_s
        self._state: int | None = None  # a descriptor, like that of _shared
        # Children get the container's score; process 1 itself goes last.
        self._processes = Processes(hardening.oom_score())
        hardening.survive_oom()
        self._retries = Retries()
        self._pod_end = PodEnd(spec)
        self._overdue: list[str] = []
        self._hang_watch = HangWatch()
        self._fork_server = ForkServer(self._processes, spec, self._retries, self._hang_watch)
        self._buckets: list[SupervisedBucket] = []
        self._directories: list[SupervisedVolume] = []  # mounted by the kubelet
        self._volumes: list[SupervisedVolume] = []  # both, in the spec's order
        for volume in spec.volumes:
            if volume.is_bucket:
                bucket = SupervisedBucket(volume, self._fork_server, self._retries)
                self._buckets.append(bucket)
                self._volumes.append(bucket)
            else:
                directory = SupervisedVolume(volume)
                self._directories.append(directory)
                self._volumes.append(directory)
        self._warm_up = WarmUpProcess(self._buckets, self._fork_server, self._retries)
        self._waiting = StartWait(self._volumes, self._retries, started_s)
        self._health: Child | None = None
        self._health_delay = RestartDelay()
        self._reporter: Child | None = None  # in a pod only
        self._reporter_starts = 0
        self._checks: dict[Child, SupervisedVolume] = {}
        self._shared: status.SharedDirectory | None = None
        self._phase: Literal["starting", "ready", "draining", "stopped", "failed"] = "starting"
        self._published_troubles = 0
        self._ready = False
        self._time_to_ready_s: float | None = None
        self._listener: socket.socket | None = None
        self._stop_asked = False
        self._failure: SidecarError | None = None

    def run(self) -> int:
        """The whole life; returns the exit status of the contract."""
        try:
            try:
                self._prepare()
                self._preflight()
                self._mount()
                self._verify()
                self._warm_up.run(self._turn_unless_stopped, self._deadline_s)
                self._become_ready()
            except Stopped:
                logs.event(log, "asked to stop before ready")
            else:
                try:
                    self._serve_and_heal()
                except Exception as error:
                    # What programs wrote to the other mounts is saved all the same.
                    known = error if isinstance(error, SidecarError) else None
                    log.critical("cannot go on: %s", error, exc_info=None if known else error)
                    return self._drain() or self._fail(known or SidecarError(repr(error)))
            return self._drain()
        except SidecarError as error:
            return self._fail(error)
        finally:
            self._tear_down()

    # --- the script ---------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Everything that needs no network: the host, the directories, what a crash left."""
        try:
            self._state = directories.open_directory(self._spec.roots.state, make=True)
            # Whatever an earlier container of this pod had to report has been reported.
            status.remove_status(self._state)
        except OSError as error:
            raise preparation.unusable(error) from None
        self._fork_server.start()
        if pod.is_in_pod():
            self._start_reporter()  # so early that it reports whatever fails below
        preparation.check_memory(len(self._buckets), self._spec.memory_cache_bytes)
        # The socket comes before the process that answers: a probe waits, and needs no second try.
        if (port := self._spec.http.port) is not None:
            hint = "free the port, or set another in the spec (`http.host`, `http.port`)"
            self._listener = listen(self._spec.http.host, port, hint)
        if self._buckets:
            mounts.check_host()
        try:
            directories.remove(self._state, status.METRICS_DIRECTORY)
            self._shared = status.SharedDirectory(self._spec.roots.shared)
            self._shared.remove(status.READY_FILE)
            self._write_status()  # later writes are tried again; this one must work
        except OSError as error:
            raise preparation.unusable(error) from None
        for bucket in self._buckets:
            bucket.was_shown = status.was_shown(self._state)
            bucket.prepare()
        self._publish()
        self._start_health()

    def _preflight(self) -> None:
        """Credentials and buckets really answer; hostPaths and claims are really there."""
        for bucket in self._buckets:
            bucket.start_worker(self._deadline_s - time.monotonic())
        for directory in self._directories:
            self._check_path(directory, write=not directory.volume.read_only)
        self._turn_until(
            lambda: (
                self._health is not None
                and self._health.pid is not None
                and not self._is_checking
                and all(volume.state == "checked" for volume in self._volumes)
            )
        )

    def _mount(self) -> None:
        for bucket in self._buckets:
            bucket.mount()
        self._turn_until(lambda: all(bucket.state == "serving" for bucket in self._buckets))

    def _verify(self) -> None:
        """List every bucket through its mount, and make the run's outputs directory."""
        for bucket in self._buckets:
            self._check_path(bucket, write=False)
        self._turn_until(lambda: not self._is_checking)
        path = self._spec.outputs_path
        outputs = next((v for v in self._volumes if v.volume.kind == "outputs"), None)
        if outputs is not None and path is not None and path.startswith("/"):
            access = self._spec.access
            # In a pod a bucket's path is the experiment's; here its mountpoint counts.
            root = outputs.volume.mounted_at
            run_directory = root + path.removeprefix(outputs.volume.path)
            owner = access.uid, access.gid, access.dir_mode
            make = partial(path_checks.make_run_directory, root, run_directory, *owner)
            self._check(outputs, make)
            self._turn_until(lambda: not self._is_checking)

    def _become_ready(self) -> None:
        self._ready = True
        self._phase = "ready"
        self._time_to_ready_s = time.monotonic() - self._started_s
        for directory in self._directories:
            directory.state = "serving"
        for bucket in self._buckets:
            bucket.heals = True
        self._publish()
        # Others use the mounts from the first file on, so a shortage must not end this process.
        self._retries.do("tell that it is ready", self._tell_ready)
        self._warm_up.become_ready()

    def _tell_ready(self) -> None:
        assert self._shared is not None
        assert self._state is not None
        try:
            status.note_shown(self._state)
            self._shared.write(status.READY_FILE, f"{self._time_to_ready_s:.3f}\n")
            status.note_ready(self._state)
        except OSError as error:
            if lacks_resources(error):
                raise
            raise preparation.unusable(error) from None
        logs.event(log, "ready", seconds=f"{self._time_to_ready_s:.3f}", port=self._http_port)

    def _serve_and_heal(self) -> None:
        assert self._state is not None
        while not self._stop_asked:
            self._turn()
            if self._pod_end.look(self._state):
                self._publish()
            if (deadline_s := self._pod_end.deadline_s) is not None:
                for bucket in self._buckets:
                    bucket.hurry(deadline_s)
                self._pod_end.tell_unsaved(self._buckets)
                if not self._stop_asked:  # the experiment has not ended
                    self._call_janitor(self._pod_end.overdue())

    def _drain(self) -> int:
        """Save everything within the grace period; the exit status says whether it was all.

        A worker that ends meanwhile is replaced, and the next one is asked again.
        """
        self._warm_up.leave(self._turn)
        seconds = self._pod_end.seconds_left()
        end_s = time.monotonic() + seconds
        self._phase = "draining"
        waiting = [b for b in self._buckets if self._ready or b.state == "serving"]
        if waiting:
            logs.event(log, "saving what is dirty", seconds=seconds)
        for bucket in self._buckets:
            bucket.stopping = True
        self._publish()
        answer_s = max(_ANSWER_S, self._spec.times.grace_margin_s - _TEAR_DOWN_S)
        while waiting and time.monotonic() < end_s + answer_s:
            for bucket in waiting:
                if bucket.state == "serving":
                    bucket.drain(max(0.0, end_s - time.monotonic()))
            self._turn(end_s + answer_s)
            waiting = [bucket for bucket in waiting if bucket.state != "drained"]
            self._pod_end.tell_unsaved(self._buckets)
        for bucket in waiting:
            bucket.give_up_draining(seconds)
        self._phase = "stopped"
        self._publish()  # at once: there may be no time later
        lines = unsaved_lines(self._spec, self._buckets)
        if not lines:
            return EXIT_OK
        self._tell_user(lines)
        return NotSaved.exit_status

    # --- ends -------------------------------------------------------------------------------

    def _fail(self, error: SidecarError) -> int:
        self._phase = "failed"
        self._failure = error
        self._tell_user([error.line()])
        return error.exit_status

    def _tell_user(self, lines: list[str]) -> None:
        text = "\n".join(lines) + "\n"
        sys.stderr.write(text)  # line-buffered
        status.write_termination_message(self._spec.roots.termination_message, text)

    def _tear_down(self) -> None:
        """Leave nothing: no mount, no process, no ready file, no empty mountpoint."""
        self._ready = False
        if self._shared is not None:
            try:
                self._shared.remove(status.READY_FILE)
            except OSError as error:  # somebody put a directory there
                logs.event(log, "ready file not removed", logging.ERROR, why=error.strerror)
        for volume in self._checks.values():
            logs.event(log, "check abandoned", logging.WARNING, volume=volume.volume.label)
        self._checks.clear()
        if self._reporter is not None:
            self._fork_server.wait_for(self._reporter, _LAST_REPORTS_S)
        self._fork_server.close()
        leaving = []
        self._retries.forget_all()
        for bucket in self._buckets:
            self._retries.do(f"unmount {bucket.volume.label}", bucket.unmount)
            if bucket.worker is not None and bucket.worker.running:
                bucket.worker.channel.send({"do": "leave"})
                leaving.append(bucket.worker)
        self._processes.end(leaving)
        for bucket in self._buckets:  # a worker may have mounted meanwhile
            self._retries.do(f"unmount {bucket.volume.label}", bucket.unmount)
            bucket.state = "stopped"
        end_s = time.monotonic() + _LAST_UNMOUNTS_S
        while self._retries.due_s < end_s:
            time.sleep(max(0.0, self._retries.due_s - time.monotonic()))
            self._retries.turn()
        if self._state is not None:
            self._publish()
        if self._reporter is not None:
            # Everything is saved and unmounted by now, so nobody waits for this.
            self._reporter.channel.send({"do": "leave"})
            self._processes.end([self._reporter], _LAST_REPORTS_S)
        self._processes.end_all()
        for bucket in reversed(self._buckets):
            bucket.remove_directories()

    # --- events -------------------------------------------------------------------------------

    def _turn_until(self, done: Callable[[], bool]) -> None:
        """Turn the loop until ``done``. Raises Stopped, or what a volume or the time-out raises."""
        while not done():
            if time.monotonic() >= self._deadline_s:
                seconds = self._spec.times.ready_timeout_s
                raise self._waiting.error(seconds, self._checks.values())
            self._turn_unless_stopped(self._deadline_s)
            if self._waiting.look(self._checks.values()):
                self._publish()

    def _turn_unless_stopped(self, deadline_s: float) -> None:
        if self._stop_asked:
            raise Stopped
        self._turn(deadline_s)

    def _turn(self, deadline_s: float = float("inf")) -> None:
        until_s = min(
            time.monotonic() + _TURN_S, deadline_s, self._retries.due_s, self._hang_watch.due_s
        )
        for event in self._processes.events(until_s):
            if isinstance(event, MessageReceived):
                if not self._hang_watch.take(event.child, event.message):
                    self._on_message(event.child, event.message)
            elif isinstance(event, ChildEnded):
                self._on_ended(event.child, event.ending)
            else:
                self._stop_asked = True
        self._hang_watch.turn()
        for bucket in self._buckets:
            worker = bucket.worker
            if worker and bucket.doubt(hangs=self._hang_watch.is_suspect(worker)):
                self._publish()
        self._retries.turn()
        if self._troubles != self._published_troubles:
            self._publish()

    def _on_message(self, child: Child, message: Message) -> None:
        event = message["event"]
        if child is self._health and event == "ping":
            child.channel.send({"pong": message["number"]})
        elif child is self._reporter and event == "lost":
            for each in self._buckets:
                each.lost_in = message["containers"].get(each.volume.label, [])
            self._publish()
        elif child is self._reporter and event == "deleted":
            self._pod_end.on_deleted(message)
        elif child is self._reporter and event == "experiment ended":
            logs.event(log, event)
            self._stop_asked = True  # the pod's other containers have ended
        elif child in self._checks and event in ("passed", "failed"):
            self._on_checked(self._checks.pop(child), message)
        elif self._fork_server.on_message(child, message):
            return
        elif self._warm_up.on_message(child, message):
            self._publish()
        elif bucket := self._bucket_of(child):
            bucket.on_message(message)
            self._publish()

    def _on_checked(self, volume: SupervisedVolume, message: Message) -> None:
        if message["event"] == "failed":
            raise volume.named(from_message(message))
        if volume in self._directories:
            volume.state = "checked"

    def _on_ended(self, child: Child, ending: Ending) -> None:
        if child is self._health:
            if not self._ready:
                raise HostError(f"the health process ended ({ending})")
            self._start_health(self._health_delay.after_end_s(time.monotonic()))
        elif child is self._reporter:
            self._reporter = None
            logs.event(log, "the reporter ended", logging.WARNING, how=ending)
            if self._reporter_starts < _MOST_REPORTER_STARTS:
                self._start_reporter()
        elif child in self._checks:
            volume = self._checks.pop(child)
            raise volume.named(ProbeTimeout(f"the check ended ({ending})"))
        elif (lost := self._fork_server.on_ended(child)) is not None:
            logs.event(log, "the fork server ended", logging.WARNING, how=ending)
            for asked in lost:
                self._on_ended(asked, ending)
        elif self._warm_up.on_ended(child, ending):
            self._publish()
        elif bucket := self._bucket_of(child):
            bucket.on_worker_ended(ending, child.hung)
            self._publish()

    # --- acts -----------------------------------------------------------------------------------

    def _bucket_of(self, worker: Child) -> SupervisedBucket | None:
        return next((bucket for bucket in self._buckets if bucket.worker is worker), None)

    @property
    def _http_port(self) -> int | None:
        return self._listener.getsockname()[1] if self._listener is not None else None

    def _start_health(self, delay_s: float = 0.0) -> None:
        def start() -> None:
            listener = () if self._listener is None else (self._listener.fileno(),)
            self._health = self._fork_server.fork("health", "health", {}, listener)

        self._retries.do("start the health process", start, delay_s)

    def _start_reporter(self) -> None:
        def start() -> None:
            self._reporter = self._fork_server.fork("reporter", "reporter", {})
            self._reporter_starts += 1

        self._retries.do("start the reporter", start)

    def _call_janitor(self, overdue: list[str]) -> None:
        """Ask the node's janitor to end containers of this pod. Without one they stay."""
        assert self._state is not None
        if overdue and overdue != self._overdue:
            self._overdue = overdue
            logs.event(log, "the experiment's own grace period is over", containers=overdue)
            act = partial(status.write_overdue, self._state, overdue)
            self._retries.do("call the janitor", act)

    def _check_path(self, volume: SupervisedVolume, *, write: bool) -> None:
        path, filled = volume.volume.mounted_at, volume.volume.must_hold_data
        self._check(volume, lambda: path_checks.check_directory(path, write=write, filled=filled))

    def _check(self, volume: SupervisedVolume, function: Callable[[], None]) -> None:
        def start() -> None:
            self._checks[self._processes.run(function)] = volume

        self._retries.do(volume.check_name, start)

    @property
    def _is_checking(self) -> bool:
        """Whether a check runs, or is still to be started."""
        pending = (self._retries.is_pending(volume.check_name) for volume in self._volumes)
        return bool(self._checks) or any(pending)

    @property
    def _troubles(self) -> int:
        return self._retries.shortages.total() + self._hang_watch.hung.total()

    def _publish(self) -> None:
        """Write the status document for /statusz and for the experiment."""
        self._retries.do("write the status", self._write_status)

    def _write_status(self) -> None:
        self._published_troubles = self._troubles
        text = status.dump_status(
            {
                "version": 1,
                "phase": self._phase,
                "ready": self._ready,
                "time_to_ready_seconds": self._time_to_ready_s,
                "http_port": self._http_port,
                "run": self._spec.run,
                "restarted": any(bucket.was_shown for bucket in self._buckets),
                "waiting": self._waiting.text if self._phase == "starting" else "",
                "time_is_up": self._pod_end.is_over,
                "error": self._failure.document() if self._failure is not None else None,
                "shortages": self._retries.shortages,
                "hung": self._hang_watch.hung,
                "volumes": [volume.document() for volume in self._volumes],
            }
        )
        assert self._state is not None
        status.write_status(self._state, text)
        if self._shared is not None:
            self._shared.write(status.STATUS_FILE, text)
