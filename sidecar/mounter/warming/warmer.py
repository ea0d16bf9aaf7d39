"""The process that warms the volumes of a pod up, one after the other. It may end at any time.

It tells process 1 how far it is: ``{"event": "warming", "volume": label, "state": state,
"names": n, "bytes": n}``.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from pathlib import Path
from typing import Final, Literal

from sidecar import logs
from sidecar.contract.spec import PersistenceSpec, Volume
from sidecar.metrics import read_volume_totals
from sidecar.mounter.reading import read_log
from sidecar.mounter.system import directories, resource_limits
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.status import METRICS_DIRECTORY
from sidecar.mounter.warming import learned
from sidecar.mounter.warming.warm_up import WarmUp

log = logging.getLogger("sidecar.warming")

State = Literal["running", "done", "stopped"]
_TELL_S: Final = 1.0
_WATCH_S: Final = 2.0
"""How long the experiment must read more than the warm-up before the warm-up stops."""


def main(channel: Channel, spec: PersistenceSpec) -> int:
    """Warm up, until told otherwise by ``{"do": "ready"}`` and ``{"do": "leave"}``.

    The process stays until it is told to leave, since the run's first reads are kept at its end.
    """
    logs.set_up("warming")
    if channel.receive() is None:  # its duty, which has no arguments
        return 0
    warming = _Warming(spec, channel)
    threading.Thread(target=warming.run, name="warm", daemon=True).start()
    while (received := channel.receive()) is not None:
        if received[0]["do"] == "leave":
            break
        warming.ready.set()
    warming.leave()
    return 0


class _Warming:
    """All volumes of one pod.

    Attributes:
        ready: set once the experiment may read.
    """

    def __init__(self, spec: PersistenceSpec, channel: Channel) -> None:
        self._spec = spec
        self._channel = channel
        self._stopping = threading.Event()
        self._notes: list[Volume] = []  # those whose first reads are noted
        self.ready = threading.Event()

    def run(self) -> None:
        """Warm up each volume that has something to read."""
        for volume in self._spec.buckets:
            if volume.options.warms:
                self._warm(volume)

    def leave(self) -> None:
        """Stop, and keep the notes. Raises nothing."""
        self._stopping.set()
        for volume in self._notes:
            try:
                self._keep(volume)
            except (OSError, ValueError) as error:
                logs.event(
                    log,
                    "what was read first is not kept",
                    logging.WARNING,
                    volume=volume.label,
                    why=error,
                )

    def _keep(self, volume: Volume) -> None:
        state = directories.open_directory(Path(self._spec.roots.state) / volume.identity)
        try:
            descriptor = directories.open_file(state, read_log.FILE, os.O_RDONLY)
        except FileNotFoundError:
            return  # nothing was read
        finally:
            os.close(state)
        with open(descriptor, "rb") as file:
            content = file.read(read_log.MOST_BYTES + 1)
        runs = len(read_log.parse(content))
        if learned.save(self._spec, volume, content):
            logs.event(log, "what was read first is kept", volume=volume.label, runs=runs)

    def _warm(self, volume: Volume) -> None:
        options = volume.options
        stopping = threading.Event()
        warm_up = WarmUp(volume.mounted_at, most_bytes(self._spec, volume), stopping)
        watch = threading.Thread(
            target=self._watch, args=(volume, warm_up, stopping), name="watch", daemon=True
        )
        began_s = time.monotonic()
        runs = None
        if options.warm_learned is not None:
            try:
                runs = learned.load(self._spec, volume)
            except OSError as error:
                logs.event(log, "cannot read what was learned", logging.WARNING, why=error)
            if runs is None:
                self._notes.append(volume)
        watch.start()
        warm_up.read_names(options.warm_list)
        warm_up.read(itertools.chain(warm_up.matching(options.warm_read), runs or ()))
        state: State = "stopped" if stopping.is_set() else "done"
        stopping.set()
        watch.join()
        self._tell(volume, warm_up, state)
        logs.event(
            log,
            "warmed up" if state == "done" else "the warm-up gives way",
            volume=volume.label,
            names=warm_up.names,
            bytes=warm_up.read_bytes,
            seconds=f"{time.monotonic() - began_s:.1f}",
        )

    def _watch(self, volume: Volume, warm_up: WarmUp, stopping: threading.Event) -> None:
        """Report its progress, and stop it once the experiment reads more of the volume.

        Then the warm-up is no longer ahead of the experiment, and takes its bandwidth.
        """
        metrics: Path | None = None
        before: tuple[float, int] | None = None
        next_look_s = 0.0
        while not stopping.wait(_TELL_S / 10):
            if self._stopping.is_set():
                stopping.set()
            now_s = time.monotonic()
            if now_s < next_look_s:
                continue
            next_look_s = now_s + (_WATCH_S if self.ready.is_set() else _TELL_S)
            self._tell(volume, warm_up, "running")
            if not self.ready.is_set():
                continue
            if metrics is None:  # made before ready
                metrics = directories.pinned(Path(self._spec.roots.state) / METRICS_DIRECTORY)
            total = read_volume_totals(metrics).read_bytes.get(volume.label, 0.0)
            now = (total, warm_up.read_bytes)
            if before is not None:
                own = now[1] - before[1]
                if now[0] - before[0] - own > own:
                    stopping.set()
            before = now

    def _tell(self, volume: Volume, warm_up: WarmUp, state: State) -> None:
        self._channel.send(
            {
                "event": "warming",
                "volume": volume.label,
                "state": state,
                "names": warm_up.names,
                "bytes": warm_up.read_bytes,
            }
        )


def most_bytes(spec: PersistenceSpec, volume: Volume) -> int:
    """How much there is room for: more would drop what the warm-up itself has brought."""
    options = volume.options
    room = options.cache_bytes
    if options.cache == "node":
        room = spec.node_cache.size_bytes
    elif options.cache == "none":
        room = resource_limits.page_cache_bytes(len(spec.buckets), spec.memory_cache_bytes)
    return options.warm_bytes if room is None else min(options.warm_bytes, room)
