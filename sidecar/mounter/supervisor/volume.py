"""One volume as process 1 sees it: start, crash, healing, drain. Standard library only."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import deque
from typing import Any, Final, Literal

from sidecar import logs
from sidecar.contract.spec import ClaimSource, HostPathSource, Source, Volume
from sidecar.errors import (
    MountFailed,
    SidecarError,
    WorkerHung,
    WorkerLost,
    from_message,
)
from sidecar.mounter.supervisor.forking import ForkServer
from sidecar.mounter.supervisor.retries import Retries
from sidecar.mounter.system import mounts
from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.directories import unusable
from sidecar.mounter.system.memory_directory import memory_directory
from sidecar.mounter.system.processes import Child, Ending
from sidecar.mounter.system.watchdog import STOPPED

log = logging.getLogger("sidecar.supervisor")

State = Literal[
    "starting",
    "probing",
    "checked",
    "mounting",
    "serving",
    "restarting",
    "draining",
    "drained",
    "stopped",
]

_RECENT_S: Final = 10.0
_ENDS_WITHOUT_DELAY: Final = 10
_REMEMBERED_ENDS: Final = 100
_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
_MOST_FAILED_RESUMES: Final = 3
_WORKER_START_S: Final = 3600.0
_REQUEST_BYTES: Final = 1024 * 1024
_STARVED: Final = Ending(exit_status=os.EX_OSERR, signal=None)
"""No memory, no thread, no descriptor: ``fuse/connection.py``, ``worker/worker.py``."""
_ENDINGS_WITHOUT_CRASH: Final = (Ending(exit_status=None, signal=signal.SIGKILL), _STARVED)


class SupervisedVolume:
    """One volume as process 1 sees it. The kubelet mounts it, unless it is a bucket.

    Attributes:
        volume: the volume of the spec.
        state: what the status document shows.
        error: why it cannot be used at present, or None.
        check_name: the name of the check of whether it can be used.
    """

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.state: State = "starting"
        self.error: SidecarError | None = None
        self.check_name = f"check {volume.label}"

    def named(self, error: SidecarError) -> SidecarError:
        """The same error, with the volume named in front."""
        what = f"volume {self.volume.label} ({_origin(self.volume.source)}): {error.what}"
        return type(error)(what, error.hint)

    def document(self) -> dict[str, Any]:
        """Its part of the status document."""
        return {
            "kind": self.volume.kind,
            "name": self.volume.name,
            "path": self.volume.path,
            "source": _origin(self.volume.source),
            "read_only": self.volume.read_only,
            "state": self.state,
            "error": self.error.document() if self.error else None,
            "failing": [],
            "worker_pid": None,
            "healed": {},
            "left": None,
            "unsaved": [],
            "unsaved_count": 0,
            "remounted_at": None,
            "lost_in": [],
            "warmed": None,
        }


class SupervisedBucket(SupervisedVolume):
    """A volume that the sidecar mounts: its mount, and the worker that serves it.

    Attributes:
        heals: a worker that ends is replaced. Before ready, its end ends the sidecar.
        stopping: the sidecar is draining, so a worker may fail before ready.
        worker: the worker that was started last; it may have ended.
        unsaved: files that are not saved in the pod's last minute (key, size_bytes, code, why);
            no more than the worker lists.
        unsaved_count: their number.
        was_shown: other containers have had the volume before, or may have it now.
        lost_in: names of the containers whose sub-path leads to an earlier mount than this one.
        warmed: how far the warm-up has come (state, names, bytes); None without one.
    """

    def __init__(
        self,
        volume: Volume,
        fork_server: ForkServer,
        retries: Retries,
    ) -> None:
        super().__init__(volume)
        self._fork_server = fork_server
        self._retries = retries
        self.heals = False
        self.stopping = False
        self.worker: Child | None = None
        self._restart_delay = RestartDelay()
        self._crashed = False  # the last worker ended by a fault of its own
        self._mountpoint = mounts.Mountpoint(volume.mounted_at)
        self._connection: int | None = None  # /dev/fuse, kept open from worker to worker
        self._memory: int | None = None  # parts on their way to the store, from worker to worker
        self._can_resume = False
        self._resuming = False
        self._failed_resumes = 0
        self._unmounts = False  # before the next worker starts
        self._healed = {"resend": 0, "remount": 0}
        self._failing: list[dict[str, Any]] = []  # calls to the store, as the worker reports them
        self._conditions: list[str] = []  # which ones the store checks, as the first worker found
        self._left: dict[str, int] | None = None  # while draining
        self._hurried: tuple[Child, float] | None = None  # the worker that was told, and until when
        self.unsaved: list[dict[str, Any]] = []
        self.unsaved_count = 0
        self.was_shown = False
        self.lost_in: list[str] = []
        self.warmed: dict[str, Any] | None = None
        self._remounted_at: float | None = None  # wall clock

    def document(self) -> dict[str, Any]:
        """Its part of the status document."""
        document = super().document()
        if self.error is None and self._failing:
            document["error"] = self._failing[-1]
        return {
            **document,
            "transport": self.volume.options.transport,
            "failing": self._failing,
            "worker_pid": self.worker.pid if self.worker and self.worker.running else None,
            "healed": self._healed,
            "left": self._left,
            "unsaved": self.unsaved,
            "unsaved_count": self.unsaved_count,
            "remounted_at": self._remounted_at,
            "lost_in": self.lost_in,
            "warmed": self.warmed,
        }

    # --- the mount ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """An empty, guarded mountpoint. Raises StateUnusable, MountFailed."""
        try:
            count = self._mountpoint.prepare()
        except OSError as error:
            what = f"cannot make the mountpoint `{self._mountpoint.path}`"
            raise unusable(what, error) from None
        if count:
            logs.event(log, "cleared stale mounts", volume=self.volume.label, count=count)
        try:
            self._mountpoint.guard(is_looked_at=self.volume.options.transport == "libfuse")
        except MountFailed as error:
            raise self.named(error) from None

    def mount(self) -> None:
        """Mount, and give the connection to the worker. Raises MountFailed."""
        self.state = "mounting"
        assert self.worker is not None
        if self.volume.is_sub_path and (self.was_shown or self.heals):
            # A container's sub-path, bound by the kubelet, leads to the earlier mount for good.
            self._remounted_at = time.time()
        if self.volume.options.transport == "libfuse":
            self.worker.channel.send({"do": "mount"})
            return
        try:
            self._connection = mounts.open_connection()
            self._mountpoint.mount_fuse(
                self._connection,
                _origin(self.volume.source),
                read_only=self.volume.read_only,
                max_read_bytes=_REQUEST_BYTES,
            )
        except MountFailed as error:
            raise self.named(error) from None
        self.worker.channel.send({"do": "mount"}, (self._connection,))

    def unmount(self, *, keep_guard: bool = False) -> None:
        """Detach the mount and close the connection: the kernel then aborts what waits.

        Raises OSError, MountFailed.
        """
        self._mountpoint.clear(keep_guard=keep_guard)
        if self._connection is not None:
            os.close(self._connection)
            self._connection = None

    def remove_directories(self) -> None:
        """Remove the directories that :meth:`prepare` made, if they are empty."""
        self._mountpoint.remove_directories()

    # --- the worker ---------------------------------------------------------------------------

    def start_worker(self, seconds: float, delay_s: float = 0.0) -> None:
        """Start a worker after ``delay_s``, once resources allow it.

        It gives up if the bucket does not answer within ``seconds`` from now.
        """
        deadline_s = time.monotonic() + seconds
        self._retries.do(
            f"start the worker of {self.volume.label}",
            lambda: self._start_worker(deadline_s),
            delay_s,
        )

    def _start_worker(self, deadline_s: float) -> None:
        if self._unmounts:
            self.unmount(keep_guard=True)
            self._unmounts = False
        self._resuming = self._can_resume
        if self._memory is None:
            self._memory = memory_directory()
        descriptors: tuple[int, ...] = (self._memory,)
        if self._resuming and self._connection is not None:
            descriptors = (self._memory, self._connection)
        self.worker = self._fork_server.fork(
            "worker",
            f"worker {self.volume.label}",
            {
                "do": "serve",
                "identity": self.volume.identity,
                "kind": self.volume.kind,
                "name": self.volume.name,
                "seconds": max(0.0, deadline_s - time.monotonic()),
                "crashed": self._crashed,
                "failing": self._failing,
                "conditions": self._conditions,
                # Verified once: successors need not write again.
                "writes": not (self.heals or self.volume.read_only),
            },
            descriptors,
        )

    def hurry(self, deadline_s: float) -> None:
        """Have the worker save everything from now on, until ``deadline_s`` (monotonic)."""
        if self.volume.read_only or self.state != "serving" or self.worker is None:
            return
        hurried = self.worker, deadline_s
        if hurried != self._hurried:
            self._hurried = hurried
            seconds = max(0.0, deadline_s - time.monotonic())
            self.worker.channel.send({"do": "hurry", "seconds": seconds})

    def drain(self, seconds: float) -> None:
        """Ask the worker to save everything within ``seconds``."""
        assert self.worker is not None
        self.state = "draining"
        self.worker.channel.send({"do": "drain", "seconds": seconds})

    def give_up_draining(self, seconds: float) -> None:
        """Note that the worker did not answer within ``seconds``: something may be unsaved."""
        self.error = self.error or WorkerLost(f"no answer within {seconds:g} s")
        if not self.unsaved_count:
            error = {"code": self.error.code, "why": self.error.what}
            self.unsaved_count, self.unsaved = 1, [{"key": "(unknown)", "size_bytes": 0, **error}]

    def on_message(self, message: Message) -> None:
        """Take a message of the worker. Raises the error of one that fails before ready."""
        event = message["event"]
        if event == "probing":
            self.state = "probing"
        elif event == "waiting":
            self.error = from_message(message)
        elif event == "checked":
            self.state, self.error = "checked", None
            self._conditions = message["conditions"]
            if self.heals:
                self._mount_again()
        elif event == "serving":
            self._on_serving(can_resume=message["can_resume"])
        elif event == "failed":
            self.error = from_message(message)
            if not self.heals and not self.stopping:
                raise self.named(self.error)
        elif event == "failing":
            self._failing = message["failing"]
        elif event == "draining":
            files, size_bytes = message["unsaved_count"], message["size_bytes"]
            self.unsaved, self.unsaved_count = message["unsaved"], files
            left = {"files": files, "size_bytes": size_bytes}
            if left != (self._left or {"files": 0, "size_bytes": 0}):
                label = self.volume.label
                logs.event(log, "saving", volume=label, files_left=files, bytes_left=size_bytes)
            self._left = left if files else None
        elif event == "drained":
            self.state = "drained"
            self._left = None
            self.unsaved = message["unsaved"]
            self.unsaved_count = message["unsaved_count"]

    def _on_serving(self, *, can_resume: bool) -> None:
        self.state, self.error = "serving", None
        self._can_resume = can_resume
        healed: dict[str, Any] = {}
        if self.heals:
            healed["healed"] = "resend" if self._resuming else "remount"
            self._healed[healed["healed"]] += 1
        self._resuming = False
        self._failed_resumes = 0
        if self._connection is not None:
            with contextlib.suppress(OSError):  # without a descriptor reads are only slower
                self._mountpoint.raise_readahead()
        path = self.volume.mounted_at
        logs.event(log, "serving", volume=self.volume.label, path=path, **healed)

    def _mount_again(self) -> None:
        """Mount for a worker that replaces another; if that fails, another worker tries."""
        assert self.worker is not None
        try:
            self.mount()
        except MountFailed as error:
            label = self.volume.label
            logs.event(log, "not mounted again", logging.ERROR, volume=label, why=error.what)
            self.error = error
            self.worker.channel.send({"do": "leave"})

    def doubt(self, *, hangs: bool) -> bool:
        """Note that the worker seems to hang, or no longer does; whether that is news."""
        if self.state != "serving":
            return False
        if hangs and self.error is None:
            self.error = WorkerHung("the worker gives no sign of life")
            return True
        if not hangs and isinstance(self.error, WorkerHung):
            self.error = None
            return True
        return False

    def on_worker_ended(self, ending: Ending, hung: str | None) -> None:
        """Plan the next worker. Raises WorkerLost, WorkerHung before ready.

        Args:
            hung: why it was killed, if it hung.
        """
        if self.state in ("drained", "stopped"):
            return
        lost: SidecarError = WorkerLost(f"the worker ended: {ending}")
        if hung is not None:
            lost = WorkerHung(f"the worker was killed: {hung}")
        if not self.heals:
            raise self.named(lost)
        how = ending if hung is None else "it hung"
        logs.event(log, "worker lost", logging.WARNING, volume=self.volume.label, how=how)
        self._crashed = ending not in _ENDINGS_WITHOUT_CRASH or hung not in (None, STOPPED)
        if self._resuming and ending != _STARVED:  # resources come back, a handle does not
            self._failed_resumes += 1
        if not self._can_resume or self._failed_resumes >= _MOST_FAILED_RESUMES:
            # The next worker mounts anew. Requests in flight fail now.
            self._can_resume = False
            self._unmounts = True
            with contextlib.suppress(OSError, MountFailed):  # else before the next worker
                self.unmount(keep_guard=True)
        self.state = "restarting"
        self.error = self.error or lost
        self.start_worker(_WORKER_START_S, self._restart_delay.after_end_s(time.monotonic()))


class RestartDelay:
    """How long to wait before the next worker: not at all, unless workers end in a row.

    Programs wait for their reads meanwhile, so only a worker that ends again and again is
    slowed down, up to a bound.
    """

    def __init__(self) -> None:
        self._ends_s: deque[float] = deque(maxlen=_REMEMBERED_ENDS)

    def after_end_s(self, now_s: float) -> float:
        """The delay in seconds after a worker that ended at ``now_s`` (monotonic)."""
        self._ends_s.append(now_s)
        recent = sum(now_s - end_s < _RECENT_S for end_s in self._ends_s)
        return min(_LONGEST_DELAY_S, _DELAY_S * (recent // _ENDS_WITHOUT_DELAY) ** 2)


def _origin(source: Source) -> str:
    """How messages and /proc/mounts name a bucket's mount."""
    if isinstance(source, HostPathSource):
        return source.host_path
    return source.claim if isinstance(source, ClaimSource) else source.url
