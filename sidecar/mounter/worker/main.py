"""One process for one bucket mount: credentials, store, file system, transport.

Started by the supervisor with one end of a channel. Everything is imported before it is
told which volume it serves, so that a worker that waits as a spare replaces a dead one in
milliseconds. Says ``checked`` when the bucket answered, waits for ``mount``, serves, and
uploads what is dirty on ``drain``. If the supervisor dies, the worker saves what it can,
unmounts, and leaves.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sidecar import logs
from sidecar.errors import SidecarError, TlsUntrusted, Unavailable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.disk_cache import CacheWriter, DiskCache, occupied_bytes
from sidecar.mounter.filesystem.attributes import Ownership
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.journal import Journal
from sidecar.mounter.fuse import kernel, libfuse
from sidecar.mounter.fuse.notifier import Notifier
from sidecar.mounter.fuse.readers.pool import Readers
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.reading.read_around import PageCacheShare
from sidecar.mounter.store import open_store
from sidecar.mounter.store.failures import Failures, Outcomes, Tell
from sidecar.mounter.store.interface import ObjectInfo, Store
from sidecar.mounter.store.secrets import CredentialSource
from sidecar.mounter.system import mounts, resource_limits
from sidecar.mounter.system.channel import Channel, Message
from sidecar.mounter.worker.write_check import check_writes, probe_key, remove_leftovers
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.spool import Spool
from sidecar.spec import PersistenceSpec, StoreSource, Volume

log = logging.getLogger("sidecar.worker")

_FETCH_THREADS = 16
_MOST_READERS = 4
_UPLOAD_THREADS = 4
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
_TICK_S = 1.0
_SHOWN_UNSAVED = 100
_ORPHAN_GRACE_S = 20.0
_OOM_SCORE = "500"


class Worker:
    """The process's parts, wired.

    Args:
        volume: the bucket volume to serve.
        identity: names the metrics files and the state directory of this volume.
        failing: what failed when the worker before this one ended.
    """

    def __init__(
        self,
        spec: PersistenceSpec,
        volume: Volume,
        identity: str,
        channel: Channel,
        failing: list[Message],
    ) -> None:
        self._spec = spec
        self._volume = volume
        assert isinstance(volume.source, StoreSource)
        self._source = volume.source
        self._channel = channel
        self._mountpoint = volume.mounted_at
        self._identity = identity
        self._buckets = spec.buckets
        self._state = Path(spec.roots.state) / identity
        self._metrics = VolumeMetrics(Path(spec.roots.state) / "metrics", volume.label, identity)
        self._failures = Failures(
            lambda failing: channel.send({"event": "failing", "failing": failing})
        )
        self._failures.adopt(failing)
        self._outcomes = Outcomes(self._metrics, self._failures.flags, self._failures.take)
        self._memory_bytes = spec.sizes.memory_bytes or resource_limits.memory_budget_bytes(
            len(self._buckets)
        )
        self._filesystem: FileSystem | None = None
        self._cache: DiskCache | None = None
        self._leaving = threading.Event()

    def run(self, deadline_s: float, *, writes: bool) -> None:
        """Check, mount when told, serve. Returns when the mount is gone.

        Args:
            writes: also check that the bucket can be written.
        """
        store = self._open_store()
        notifier, readers = self._fork_children(store)
        probe = self._check(store, deadline_s, writes=writes)
        filesystem = self._build(store)
        for key in filesystem.finish_predecessor():
            logs.event(log, "saved what an earlier run had left in the spool", key=key)
        self._channel.send({"event": "checked"})
        received = self._channel.receive()
        if received is None or received[0]["do"] != "mount":
            return
        _, descriptors = received
        self._start_threads()
        if probe is not None:  # nobody waits for that
            threading.Thread(target=remove_leftovers, args=(store, probe), daemon=True).start()
        if descriptors:
            kernel.Server(
                filesystem, descriptors[0], self._metrics, self._say_serving, readers, notifier
            ).serve()
        else:
            libfuse.serve(
                filesystem,
                self._mountpoint,
                self._source.url,
                self._metrics,
                on_mounted=lambda: self._say_serving(False),
            )
        self._leaving.set()

    def resume(self, descriptor: int, *, crashed: bool) -> None:
        """Go on with the mount of a worker that died. Does not ask the store first.

        Args:
            crashed: it ended by itself, and was not killed.
        """
        store = self._open_store()
        notifier, readers = self._fork_children(store)
        filesystem = self._build(store)
        filesystem.restore(crashed=crashed)
        server = kernel.Server(
            filesystem, descriptor, self._metrics, self._say_serving, readers, notifier
        )
        server.resume()
        self._start_threads()
        server.serve()
        self._leaving.set()

    def _start_threads(self) -> None:
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        threading.Thread(target=self._tick, name="tick", daemon=True).start()

    # --- before the mount ------------------------------------------------------------------

    def _open_store(self) -> Store:
        return open_store(
            self._source,
            CredentialSource(self._source, self._spec.roots.secrets),
            retry_budget_s=self._spec.times.retry_budget_s,
            observer=self._outcomes,
            with_metadata=not self._volume.read_only,
        )

    def _fork_children(self, store: Store) -> tuple[Notifier | None, Readers | None]:
        """The children; first of all, while this process has no other thread."""
        if self._spec.transport == "libfuse":
            return None, None
        count = min(len(os.sched_getaffinity(0)), _MOST_READERS)

        def build(number: int, tell: Tell) -> Fetcher:
            metrics = VolumeMetrics(
                Path(self._spec.roots.state) / "metrics",
                self._volume.label,
                f"{self._identity}-reader{number}",
            )
            self._outcomes.move(metrics, tell)
            return self._fetcher(store, metrics, self._memory_bytes // count)

        return Notifier(), Readers(count, build, self._failures.take)

    def _fetcher(self, store: Store, metrics: VolumeMetrics, memory_bytes: int) -> Fetcher:
        return Fetcher(
            store,
            ThreadPoolExecutor(_FETCH_THREADS, thread_name_prefix="fetch"),
            BufferPool(memory_bytes),
            metrics,
            self._spec.sizes.part_bytes,
            self._open_cache(metrics),
            CacheWriter(),
            PageCacheShare(resource_limits.page_cache_bytes(len(self._buckets))),
        )

    def _open_cache(self, metrics: VolumeMetrics) -> DiskCache | None:
        """The cache folder, opened by each process for itself; a broken one is not needed."""
        folder = Path(self._spec.roots.cache or self._state / "cache")
        try:
            budget_bytes = self._cache_bytes(folder)
            if not budget_bytes:
                return None
            return DiskCache(
                folder, self._source.url, budget_bytes, on_damage=metrics.damaged_blocks.inc
            )
        except OSError as error:
            log.warning("there will be no disk cache: %s", error)
            return None

    def _cache_bytes(self, folder: Path) -> int:
        given = self._spec.sizes.cache_bytes
        if given is not None:
            return given
        # One folder for all has one budget; else each mount has a part of the disk.
        mounts = 1 if self._spec.roots.cache else len(self._buckets)
        total, free = resource_limits.disk_bytes(folder)
        return resource_limits.cache_budget_bytes(
            mounts, total, free, occupied_bytes(folder) * mounts
        )

    def _check(self, store: Store, deadline_s: float, *, writes: bool) -> ObjectInfo | None:
        """Wait until the bucket answers. Outages are retried until ``deadline_s`` (monotonic).

        Returns what was written, and deleted again, where it ``writes``.

        A wrong key, a missing bucket, or a certificate that nobody vouches for does not get
        better by waiting: raised at once.
        """
        pause_s = _FIRST_PAUSE_S
        self._channel.send({"event": "probing"})
        while True:
            try:
                store.probe()
                if not writes:
                    return None
                return check_writes(store, probe_key(self._run_directory(), self._state))
            except TlsUntrusted:
                raise
            except Unavailable as error:
                if time.monotonic() + pause_s >= deadline_s:
                    raise
                # Told now, because the deadline may strike while this process waits.
                self._channel.send({"event": "waiting", **error.to_message()})
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _run_directory(self) -> str:
        """What the experiment is given of this bucket to write to: ``user/…/1/``, or all."""
        outputs_path = self._spec.outputs_path
        if self._volume.kind != "outputs" or outputs_path is None:
            return ""
        below = outputs_path.removeprefix(self._volume.path).strip("/")
        return f"{below}/" if below else ""

    def _build(self, store: Store) -> FileSystem:
        times, sizes, access = self._spec.times, self._spec.sizes, self._spec.access
        read_only = self._volume.read_only
        ttl_s = times.metadata_read_only_s if read_only else times.metadata_writable_s
        if self._spec.transport == "libfuse":
            ttl_s /= 2  # libfuse keeps names on top of the file system: the lifetimes add up
        fetcher = self._fetcher(store, self._metrics, self._memory_bytes)
        self._cache = fetcher.cache
        self._metrics.spool_limit_bytes.set(sizes.spool_bytes)
        self._filesystem = FileSystem(
            fetcher,
            Spool(
                self._state / "spool", sizes.spool_bytes, PartLayout(sizes.part_bytes, store.limits)
            ),
            Ownership(access.uid, access.gid, access.file_mode, access.dir_mode),
            self._metrics,
            ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="upload"),
            Journal(self._state / "journal"),
            read_only=read_only,
            ttl_s=ttl_s,
        )
        return self._filesystem

    # --- while serving -----------------------------------------------------------------------

    def _say_serving(self, can_resume: bool) -> None:
        can_resume = can_resume and self._spec.healing == "resend"
        self._channel.send({"event": "serving", "can_resume": can_resume})

    def _listen(self) -> None:
        """Obey the supervisor; save and unmount if it is gone."""
        while (received := self._channel.receive()) is not None:
            message, _ = received
            if message["do"] == "drain":
                self._channel.send({"event": "drained", **self._drain(message["seconds"])})
        if self._leaving.is_set():
            return
        self._leaving.set()
        log.error("the supervisor is gone; saving and unmounting")
        self._drain(_ORPHAN_GRACE_S)
        mounts.clear(self._mountpoint)
        os._exit(1)

    def _drain(self, seconds: float) -> Message:
        assert self._filesystem is not None
        files_ = self._filesystem.files

        def tell() -> None:
            left = files_.left()
            progress = {"files": left.files, "size_bytes": left.size_bytes}
            self._channel.send({"event": "draining", **progress})

        tell()
        unsaved = self._filesystem.drain(time.monotonic() + seconds, tell)
        files = [
            {"key": key, "code": error.code if error else "", "why": error.what if error else ""}
            for key, error in unsaved.items()
        ]
        return {"unsaved": files[:_SHOWN_UNSAVED], "unsaved_count": len(files)}

    def _tick(self) -> None:
        assert self._filesystem is not None
        interval_s = self._spec.times.sync_interval_s
        next_sync_s = time.monotonic() + interval_s
        told: dict[str, str] = {}
        while not self._leaving.wait(_TICK_S):
            self._filesystem.files.account()
            self._filesystem.files.settle_versions()
            self._failures.tick()
            self._filesystem.namespace.drop_expired()
            if self._cache is not None:
                self._metrics.cache_used_bytes.set(self._cache.used_bytes)
            if time.monotonic() >= next_sync_s:
                next_sync_s = time.monotonic() + interval_s
                unsaved = self._filesystem.sync(next_sync_s)
                # Without an error it is on its way, which is no news of a large file.
                failed = {key: error for key, error in unsaved.items() if error is not None}
                for key, error in failed.items():
                    if told.get(key) != error.code:
                        logs.event(log, "not saved yet", logging.WARNING, key=key, error=error)
                told = {key: error.code for key, error in failed.items()}


def main(arguments: list[str]) -> int:
    """``python -m sidecar.mounter.worker.main CHANNEL``; the volume comes in the first message."""
    # The supervisor alone decides when to leave; a terminal's Ctrl-C goes to every process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # When memory runs out the kernel shall end a worker, which is replaced, and not the
    # supervisor, which is not (proc_pid_oom_score_adj(5)).
    Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    # 1,024 is the soft limit that shells give, for the sake of select(2), which nobody uses here.
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    channel = Channel.inherited(int(arguments[0]))
    received = channel.receive()
    if received is None or received[0]["do"] != "serve":
        return 0
    duty, descriptors = received
    deadline_s = time.monotonic() + duty["seconds"]
    logs.set_up("worker", f"{duty['kind']}/{duty['name']}")
    spec = PersistenceSpec.from_json(Path(duty["spec"]).read_text())
    volume = next(v for v in spec.volumes if (v.kind, v.name) == (duty["kind"], duty["name"]))
    worker = Worker(spec, volume, duty["identity"], channel, duty["failing"])
    try:
        if descriptors:
            worker.resume(descriptors[0], crashed=duty["crashed"])
        else:
            worker.run(deadline_s, writes=duty["writes"])
    except SidecarError as error:
        channel.send({"event": "failed", **error.to_message()})
        return error.exit_status
    return 0


def _end_with_thread(thread: threading.ExceptHookArgs) -> None:
    """A thread died of a bug or of hunger: better the whole process, which is replaced."""
    try:
        log.critical("a thread ended", exc_info=thread.exc_value)
    finally:
        os._exit(os.EX_SOFTWARE)


if __name__ == "__main__":
    threading.excepthook = _end_with_thread
    status = os.EX_SOFTWARE
    try:
        status = main(sys.argv[1:])
    except BaseException:
        log.critical("the worker ends", exc_info=True)
    finally:
        # _exit: the threads of a download that hangs must not keep the process.
        os._exit(status)
