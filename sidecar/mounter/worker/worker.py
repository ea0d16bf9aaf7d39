"""One process for one bucket mount: wires credentials, store, file system and transport.

Process 1 has it forked (:mod:`.fork_server`) and tells it what to serve. The worker sends
``checked`` when the bucket answers, waits for ``mount``, serves, and saves what is dirty on
``drain``. If process 1 dies, the worker saves what it can, unmounts, and ends.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

from sidecar import logs
from sidecar.contract.spec import PersistenceSpec, StoreSource, Volume
from sidecar.errors import MountFailed, SidecarError, StateUnusable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.cache.near_bucket import NearBucket
from sidecar.mounter.filesystem.content.write_back import SaveErrors
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.inodes.attributes import Ownership
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.fuse import server
from sidecar.mounter.fuse.notifier import Notifier
from sidecar.mounter.fuse.readers import process
from sidecar.mounter.fuse.readers.child import end_with_children
from sidecar.mounter.fuse.readers.reader_pool import ReaderPool
from sidecar.mounter.fuse.server import Server
from sidecar.mounter.fuse.stuck import StuckThreads
from sidecar.mounter.reading import read_log
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import WHOLE_OBJECT_BYTES, Fetcher
from sidecar.mounter.reading.read_around import PageCacheShare
from sidecar.mounter.reading.read_log import ReadLog
from sidecar.mounter.reading.whole_load import is_loaded_whole
from sidecar.mounter.store import in_flight, network, open_store
from sidecar.mounter.store.credentials import VolumeCredentials
from sidecar.mounter.store.failures import Failures, Outcomes, Tell, Unobserved
from sidecar.mounter.store.interface import ObjectInfo, Store
from sidecar.mounter.system import directories, hardening, mounts, resource_limits
from sidecar.mounter.system.atomic_file import replace_text
from sidecar.mounter.system.channel import Channel, Message
from sidecar.mounter.system.heartbeat import SharedBeats, beat_to
from sidecar.mounter.system.shortage import end_for, exit_with
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.system.status import METRICS_DIRECTORY
from sidecar.mounter.worker import budgets, cache_place
from sidecar.mounter.worker.bucket_check import check_bucket, writable_directory
from sidecar.mounter.worker.hang_check import HangCheck
from sidecar.mounter.worker.upkeep import Upkeep
from sidecar.mounter.worker.write_check import probe_key, remove_leftovers
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.part_memory import PartMemory
from sidecar.mounter.writing.spool import Spool

log = logging.getLogger("sidecar.worker")

_STORE_THREADS = 8
"""For copies inside the store, abandoning uploads and loading names. Parts have other threads."""
_SHOWN_UNSAVED = 100
_ORPHAN_GRACE_S = 20.0


class Worker:
    """The parts of the process, wired.

    Args:
        volume: the bucket to serve.
        identity: names the metrics files and the state directory of the volume.
        failing: the last ``failing`` that the previous worker sent.
        conditions: which conditions the store checks, as an earlier worker found.
        memory: the file for parts in memory.

    Raises:
        StateUnusable: the metrics cannot be kept.
    """

    def __init__(
        self,
        spec: PersistenceSpec,
        volume: Volume,
        identity: str,
        channel: Channel,
        failing: list[Message],
        conditions: Iterable[str],
        memory: int,
    ) -> None:
        self._spec = spec
        self._volume = volume
        self._options = volume.options
        assert isinstance(volume.source, StoreSource)
        self._source = volume.source
        self._channel = channel
        self._identity = identity
        self._state = Path(spec.roots.state) / identity
        try:
            metrics_path = Path(spec.roots.state) / METRICS_DIRECTORY
            self._metrics_path = directories.pinned(metrics_path)
        except OSError as error:
            raise directories.unusable("cannot prepare the metrics", error) from None
        self._metrics = VolumeMetrics(self._metrics_path, volume.label, identity)
        self._failures = Failures(
            lambda failing: channel.send({"event": "failing", "failing": failing})
        )
        self._failures.adopt(failing)
        self._conditions = conditions
        self._outcomes = Outcomes(self._metrics, self._failures.flags, self._failures.take)
        self._memory = memory
        # For content. Reader processes, once there are any, take most of it.
        self._memory_bytes = budgets.memory_bytes(spec, volume)
        self._near_store: Store | None = None
        learns = self._options.warm_learned is not None
        self._read_log = ReadLog(self._options.warm_bytes) if learns else None
        self._filesystem: FileSystem | None = None
        self._cache: DiskCache | None = None
        self._buffers: BufferPool | None = None
        self._leaving = threading.Event()
        self._told_backlog: Mapping[str, int] | None = None

    def run(self, deadline_s: float, *, writes: bool) -> None:
        """Check the bucket, mount when told to, serve. Returns when the mount is gone.

        Args:
            deadline_s: until when an outage of the store is waited out (monotonic).
            writes: also check that the bucket can be written.

        Raises:
            SidecarError: the bucket cannot be used.
        """
        store = self._open_store()
        notifier, readers = self._fork_children(store)
        self._channel.send({"event": "probing"})
        probe = check_bucket(
            store, self._probe_key() if writes else None, deadline_s, self._say_waiting
        )
        filesystem = self._build(store)
        for key in filesystem.recovery.finish_predecessor():
            logs.event(log, "saved what an earlier run had left in the spool", key=key)
        self._channel.send({"event": "checked", "conditions": sorted(store.conditions)})
        received = self._channel.receive()
        if received is None or received[0]["do"] != "mount":
            return
        _, descriptors = received
        self._start_threads()
        if probe is not None:  # nothing waits for this
            threading.Thread(target=remove_leftovers, args=(store, probe), daemon=True).start()
        if descriptors:
            Server(
                filesystem,
                descriptors[0],
                self._metrics,
                self._say_serving,
                readers,
                notifier,
                self._read_log,
            ).serve()
        else:
            from sidecar.mounter.fuse import libfuse  # loads fusepy, which nothing else needs

            self._check_mountpoint()
            libfuse.serve(
                filesystem,
                self._volume.mounted_at,
                self._source.url,
                self._metrics,
                on_mounted=lambda: self._say_serving(False),
            )
        self._leaving.set()

    def resume(self, descriptor: int, *, crashed: bool) -> None:
        """Go on with the mount of a worker that ended, without checking the bucket.

        Args:
            descriptor: of the mount's connection.
            crashed: whether that worker ended by a fault of its own.
        """
        store = self._open_store()
        notifier, readers = self._fork_children(store)
        filesystem = self._build(store)
        filesystem.recovery.restore(crashed=crashed)
        transport = Server(
            filesystem,
            descriptor,
            self._metrics,
            self._say_serving,
            readers,
            notifier,
            self._read_log,
        )
        transport.resume()
        self._start_threads()
        transport.serve()
        self._leaving.set()

    def _start_threads(self) -> None:
        threading.Thread(target=self._listen, name="control", daemon=True).start()
        assert self._filesystem is not None
        interval_s = self._options.save_s
        assert self._buffers is not None
        upkeep = Upkeep(
            self._filesystem,
            self._buffers,
            self._cache,
            self._metrics,
            self._failures,
            interval_s,
            self._write_read_log,
        )
        threading.Thread(
            target=upkeep.run, args=(self._leaving,), name="upkeep", daemon=True
        ).start()

    def _write_read_log(self) -> None:
        """Write it for the process that keeps it (:mod:`sidecar.mounter.warming`)."""
        if self._read_log is None or (text := self._read_log.take()) is None:
            return
        try:
            state = directories.open_directory(self._state)
            try:
                replace_text(read_log.FILE, text, state)
            finally:
                os.close(state)
        except OSError as error:
            log.warning("what programs read is not noted: %s", error)

    # --- before the mount ------------------------------------------------------------------

    def _open_store(self) -> Store:
        network.set_up(self._source, self._spec.roots.secrets)
        self._near_store = self._open_near()
        store = open_store(
            self._source,
            VolumeCredentials(self._source, self._spec.roots.secrets),
            retry_budget_s=self._options.retry_s,
            observer=self._outcomes,
            with_metadata=not self._volume.read_only,
        )
        store.conditions.update(self._conditions)
        return store

    def _open_near(self) -> Store | None:
        """The bucket near the pods; None if there is none that can be used."""
        if self._volume.near is None:
            return None
        try:
            return open_store(
                self._volume.near,
                VolumeCredentials(self._volume.near, self._spec.roots.secrets),
                retry_budget_s=0,  # instead, the volume's own store is asked
                observer=Unobserved(),
            )
        except SidecarError as error:
            log.warning("there will be no near bucket: %s", error.line())
            return None

    def _fork_children(self, store: Store) -> tuple[Notifier | None, ReaderPool | None]:
        """Fork the child processes, and then start the heartbeat.

        Called first, while this process has no other thread.
        """
        if self._options.transport == "libfuse":
            beat_to(self._channel)
            return None, None
        cores = len(os.sched_getaffinity(0))
        count = budgets.reader_processes(cores, self._memory_bytes)
        self._memory_bytes, reader_bytes = budgets.content_shares(self._memory_bytes, count)
        beats = SharedBeats()

        def build(number: int, tell: Tell) -> Fetcher:
            beats.beat(1 + number, self._stuck_threads(process.SERVING).look)
            hardening.set_oom_score(hardening.reader_oom_score(hardening.oom_score()))
            metrics = VolumeMetrics(
                self._metrics_path, self._volume.label, f"{self._identity}-reader{number}"
            )
            self._outcomes.move(metrics, tell)
            return self._fetcher(store, metrics, reader_bytes)

        notifier = Notifier(lambda: beats.beat(0))
        has_cache = self._options.cache != "none"
        readers = ReaderPool(
            count, build, self._failures.take, self._loads_whole, has_cache=has_cache
        )
        pids = (notifier.pid, *readers.pids)
        end_with_children(pids)
        check = HangCheck(self._stuck_threads(server.SERVING), beats, dict(enumerate(pids)))
        beat_to(self._channel, check.found)
        return notifier, readers

    def _stuck_threads(self, serving: Iterable[Callable[..., Any]]) -> StuckThreads:
        return StuckThreads(serving, self._options.retry_s)

    def _fetcher(self, store: Store, metrics: VolumeMetrics, memory_bytes: int) -> Fetcher:
        near = None
        origin = store.origin()
        if self._near_store is not None:
            near = NearBucket(self._near_store, origin, metrics)
            origin += self._near_store.origin()  # its blocks come into the cache, too
        return Fetcher(
            store,
            ThreadPoolExecutor(in_flight.MOST, thread_name_prefix="fetch"),
            BufferPool(memory_bytes),
            metrics,
            self._options.part_bytes,
            self._open_cache(metrics, origin),
            near,
            PageCacheShare(budgets.page_cache_bytes(self._spec)),
            self._loads_whole,
        )

    def _loads_whole(self, info: ObjectInfo) -> bool:
        is_large = info.size_bytes > WHOLE_OBJECT_BYTES
        return is_large and is_loaded_whole(self._options.read_whole, info.key)

    def _open_cache(self, metrics: VolumeMetrics, origin: str) -> DiskCache | None:
        """The disk cache, which each process opens for itself.

        None if it is off or broken, or its disk has no room.
        """
        if self._options.cache == "none":
            return None
        folder = cache_place.folder(self._spec, self._volume, self._identity)
        try:
            budget_bytes = budgets.cache_bytes(self._spec, self._volume, folder)
            if metrics is self._metrics:  # logged once, and not in each reader
                metrics.cache_limit(budget_bytes)
                if not budget_bytes:
                    _, free_bytes = resource_limits.disk_bytes(folder)
                    what = "the disk has no room for the cache, which keeps nothing"
                    logs.event(log, what, logging.WARNING, folder=folder, free_bytes=free_bytes)
            if not budget_bytes:
                return None
            return DiskCache(
                folder,
                cache_place.owner(self._spec, self._volume) + origin,
                budget_bytes,
                on_damage=metrics.damaged_blocks.inc,
            )
        except OSError as error:
            log.warning("there will be no disk cache: %s", error)
            return None

    def _build(self, store: Store) -> FileSystem:
        options, access = self._options, self._spec.access
        read_only = self._volume.read_only
        ttl_s = options.names_lifetime_s(read_only=read_only)
        if self._options.transport == "libfuse":
            ttl_s /= 2  # libfuse keeps names, too, and the two lifetimes add up
        fetcher = self._fetcher(store, self._metrics, self._memory_bytes)
        self._cache, self._buffers = fetcher.cache, fetcher.buffers
        self._metrics.spool_limit_bytes.set(options.spool_bytes)
        state = self._state_directory()
        names_bytes, most_inodes = budgets.names(self._spec)
        self._filesystem = FileSystem(
            fetcher,
            Spool(
                state.below("spool"),
                options.spool_bytes,
                PartLayout(options.part_bytes, store.limits),
                PartMemory(self._memory, budgets.stream_bytes(self._spec, self._volume)),
            ),
            Ownership(access.uid, access.gid, access.file_mode, access.dir_mode),
            self._metrics,
            ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="store"),
            Journal(state),
            read_only=read_only,
            ttl_s=ttl_s,
            names_bytes=names_bytes,
        )
        self._filesystem.namespace.inodes.most = most_inodes
        return self._filesystem

    def _probe_key(self) -> str:
        return probe_key(writable_directory(self._spec, self._volume), self._state_directory())

    def _state_directory(self) -> StateDirectory:
        """The volume's own one. Raises StateUnusable if it can be neither used nor moved aside."""
        try:
            return StateDirectory.open(Path(self._spec.roots.state)).below(self._identity)
        except OSError as error:
            raise StateUnusable(f"cannot use `{self._state}`: {error.strerror}") from None

    def _check_mountpoint(self) -> None:
        """Refuse links on the way: libfuse takes a path, and follows them. Raises MountFailed."""
        path = self._volume.mounted_at
        try:
            os.close(directories.open_directory(path, walk_only=True))
        except OSError as error:
            raise MountFailed(f"cannot mount at `{path}`: {error.strerror}") from None

    def _say_waiting(self, error: SidecarError) -> None:
        self._channel.send({"event": "waiting", **error.to_message()})

    # --- while serving -----------------------------------------------------------------------

    def _say_serving(self, can_resume: bool) -> None:
        can_resume = can_resume and self._options.healing == "resend"
        self._channel.send({"event": "serving", "can_resume": can_resume})

    def _listen(self) -> None:
        """Obey the supervisor. If it is gone, save and unmount."""
        while (received := self._channel.receive()) is not None:
            message, _ = received
            if message["do"] == "hurry":
                deadline_s = time.monotonic() + message["seconds"]
                threading.Thread(
                    target=self._hurry, args=(deadline_s,), name="hurry", daemon=True
                ).start()
            elif message["do"] == "drain":
                self._channel.send({"event": "drained", **self._drain(message["seconds"])})
        if self._leaving.is_set():
            return
        self._leaving.set()
        log.error("the supervisor is gone; saving and unmounting")
        self._drain(_ORPHAN_GRACE_S)
        # The guard stays: a program that looks there must get an error, not an empty directory.
        mounts.Mountpoint(self._volume.mounted_at).clear(keep_guard=True)
        os._exit(1)

    def _drain(self, seconds: float) -> Message:
        """Save within ``seconds``; the ``drained`` message without its event."""
        assert self._filesystem is not None
        self._tell_backlog()
        unsaved = self._filesystem.drain(time.monotonic() + seconds, self._tell_backlog)
        return self._unsaved(self._filesystem.files.write_back.backlog(), unsaved)

    def _hurry(self, deadline_s: float) -> None:
        """Save from now on, until ``deadline_s`` (monotonic), because the pod is ending."""
        assert self._filesystem is not None
        self._filesystem.hurry(deadline_s, self._leaving, self._tell_backlog)

    def _tell_backlog(self) -> None:
        assert self._filesystem is not None
        left = self._filesystem.files.write_back.backlog()
        if left != self._told_backlog:
            self._told_backlog = left
            size_bytes = sum(left.values())
            self._channel.send(
                {"event": "draining", "size_bytes": size_bytes, **self._unsaved(left)}
            )

    @staticmethod
    def _unsaved(left: Mapping[str, int], errors: SaveErrors | None = None) -> Message:
        files = []
        for key, size_bytes in itertools.islice(left.items(), _SHOWN_UNSAVED):
            error = errors.get(key) if errors is not None else None
            why = {"code": error.code if error else "", "why": error.what if error else ""}
            files.append({"key": key, "size_bytes": size_bytes, **why})
        return {"unsaved": files, "unsaved_count": len(left)}


def run(channel: Channel, spec: PersistenceSpec) -> NoReturn:
    """The life of a worker. The first message of its channel says which volume it serves."""
    threading.excepthook = lambda thread: end_for(thread.exc_value, "a thread ended")
    exit_with(lambda: _serve(channel, spec))


def _serve(channel: Channel, spec: PersistenceSpec) -> int:
    received = channel.receive()
    if received is None or received[0]["do"] != "serve":
        return 0
    duty, (memory, *connection) = received
    deadline_s = time.monotonic() + duty["seconds"]
    volume = next(v for v in spec.volumes if (v.kind, v.name) == (duty["kind"], duty["name"]))
    logs.set_up("worker", volume.label)
    try:
        worker = Worker(
            spec, volume, duty["identity"], channel, duty["failing"], duty["conditions"], memory
        )
        if connection:
            worker.resume(connection[0], crashed=duty["crashed"])
        else:
            worker.run(deadline_s, writes=duty["writes"])
    except SidecarError as error:
        channel.send({"event": "failed", **error.to_message()})
        return error.exit_status
    return 0
