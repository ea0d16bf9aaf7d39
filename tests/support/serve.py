"""Serve a memory store through a transport: ``python -m tests.support.serve TRANSPORT DIR STATE``.

A separate process, because a process must not read the mount that it serves.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from sidecar.errors import Unavailable
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.inodes.attributes import Ownership
from sidecar.mounter.filesystem.journal.journal import Journal
from sidecar.mounter.filesystem.names.name_memory import BUDGET_BYTES
from sidecar.mounter.fuse import libfuse
from sidecar.mounter.fuse.codec import MAX_REQUEST_BYTES
from sidecar.mounter.fuse.notifier import Notifier
from sidecar.mounter.fuse.server import Server
from sidecar.mounter.reading.buffers import BufferPool
from sidecar.mounter.reading.fetcher import Fetcher
from sidecar.mounter.store.interface import Store
from sidecar.mounter.system import mounts
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.writing.part_layout import PartLayout
from sidecar.mounter.writing.part_memory import PartMemory
from sidecar.mounter.writing.spool import Spool
from sidecar.units import MIB
from tests.support.memory_store import MemoryStore, before

SPOOL_BYTES = 10 * 1024 * MIB


def build(
    store: Store,
    state: Path,
    *,
    read_only: bool = False,
    ttl_s: float = 1.0,
    spool_bytes: int = SPOOL_BYTES,
    names_bytes: int = BUDGET_BYTES,
    memory: PartMemory | None = None,
) -> tuple[FileSystem, VolumeMetrics]:
    """A file system on a memory store."""
    metrics = VolumeMetrics(state / "metrics", "data/memory", "data-memory")
    fetcher = Fetcher(
        store, ThreadPoolExecutor(8), BufferPool(256 * MIB), metrics, part_bytes=8 * MIB
    )
    directory = StateDirectory.open(state)
    filesystem = FileSystem(
        fetcher,
        Spool(directory.below("spool"), spool_bytes, PartLayout(8 * MIB, store.limits), memory),
        Ownership(os.getuid(), os.getgid(), 0o644, 0o755),
        metrics,
        ThreadPoolExecutor(4),
        Journal(directory),
        read_only=read_only,
        ttl_s=ttl_s,
        names_bytes=names_bytes,
    )
    return filesystem, metrics


def _pause(operation: str, delay_s: float, *arguments: str, **_: object) -> None:
    """Answer late, or print the operation and never answer."""
    time.sleep(delay_s)
    if "hang" in arguments[operation == "copy"]:
        print(operation, flush=True)
        threading.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=["libfuse", "kernel"])
    parser.add_argument("mountpoint")
    parser.add_argument(
        "state", help="for spools and journals; the caller's, as this may be killed"
    )
    parser.add_argument("--file-mib", type=int, default=0, help="make `large`")
    parser.add_argument("--files", type=int, default=0, help="make `many/NNNNN`")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--ttl", type=float, default=1.0)
    parser.add_argument(
        "--object", action="append", default=[], metavar="KEY=TEXT", help="make this object"
    )
    parser.add_argument("--refuse-uploads", action="store_true", help="refuse writes of content")
    parser.add_argument(
        "--slow",
        type=float,
        metavar="S",
        help="delay every answer, and never answer for a key with `hang` in it",
    )
    parser.add_argument(
        "--most-inodes", type=int, help="have the kernel forget what it does not use above that"
    )
    parser.add_argument(
        "--twin", metavar="DIR", help="mount the store there too, as another client would"
    )
    parser.add_argument("--until-eof", action="store_true", help="unmount when standard input ends")
    options = parser.parse_args()
    notifier = Notifier() if options.most_inodes else None  # forked while there is one thread
    store = MemoryStore()
    if options.file_mib:
        store.put("large", random.Random(1).randbytes(MIB) * options.file_mib)
    for number in range(options.files):
        store.put(f"many/{number:05d}", b"%05d" % number)
    for argument in options.object:
        key, _, text = argument.partition("=")
        store.put(key, text.encode())
    if options.refuse_uploads:
        store.refuse_content(Unavailable("the store was told to refuse uploads"))
    if options.slow is not None:
        for operation in ("list", "head", "get", "put", "copy", "delete"):
            store.hooks[operation] = before(partial(_pause, operation, options.slow))
    mountpoints = [path for path in (options.twin, options.mountpoint) if path]
    if options.until_eof:
        # The mount must not outlive the test, even if that is killed.
        threading.Thread(target=_unmount_at_eof, args=(mountpoints,), daemon=True).start()
    for number, mountpoint in enumerate(mountpoints):
        filesystem, metrics = build(
            store, Path(options.state, str(number)), read_only=options.read_only, ttl_s=options.ttl
        )
        if mountpoint == options.mountpoint and options.transport == "libfuse":
            libfuse.serve(filesystem, mountpoint, "memory", metrics, _say_serving)
            continue
        descriptor = os.open(mounts.FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        place = mounts.Mountpoint(mountpoint)
        place.prepare()
        place.mount_fuse(
            descriptor,
            "memory",
            read_only=options.read_only,
            max_read_bytes=MAX_REQUEST_BYTES,
        )
        if options.most_inodes:
            filesystem.namespace.inodes.most = options.most_inodes
        if mountpoint == options.mountpoint:
            Server(filesystem, descriptor, metrics, _say_serving, notifier=notifier).serve()
        else:
            server = Server(filesystem, descriptor, metrics, _say_nothing)
            threading.Thread(target=server.serve, daemon=True).start()


def _unmount_at_eof(mountpoints: list[str]) -> None:
    # Not sys.stdin: the interpreter would wait for its lock at exit.
    while os.read(0, 4096):
        pass
    for path in mountpoints:
        mounts.clear(path)


def _say_nothing(_can_resend: bool = False) -> None:
    """Print nothing: the twin serves before the main mount is ready."""


def _say_serving(_can_resend: bool = False) -> None:
    print("serving", flush=True)


if __name__ == "__main__":
    main()
