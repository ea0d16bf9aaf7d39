"""What each system call does: one function for each, and the table of opcodes.

A function decodes a request, calls the file system, and returns an outcome or raises an error
that has an errno. :mod:`.server` writes the answer to the connection.
"""

from __future__ import annotations

import errno
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.errors import NotFound, SidecarError, WouldBlock
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.readdir import DirectoryEntry
from sidecar.mounter.fuse import codec
from sidecar.mounter.fuse import protocol as p
from sidecar.mounter.fuse.callers import Callers, is_killed
from sidecar.mounter.fuse.codec import Request
from sidecar.mounter.fuse.connection import Reply
from sidecar.mounter.fuse.open_policy import OpenPolicy
from sidecar.mounter.fuse.passthrough import BackingFiles
from sidecar.mounter.fuse.protocol import Opcode
from sidecar.mounter.fuse.readers.direct_read import DirectRead
from sidecar.mounter.fuse.readers.reader_pool import ReaderPool
from sidecar.mounter.reading.read_log import ReadLog

_WANTED = (
    p.Init.ASYNC_READ
    | p.Init.ATOMIC_O_TRUNC  # otherwise open(O_TRUNC) would save an empty object first
    | p.Init.BIG_WRITES
    | p.Init.DO_READDIRPLUS
    | p.Init.ASYNC_DIO
    | p.Init.PARALLEL_DIROPS
    | p.Init.MAX_PAGES
    | p.Init.INIT_EXT
    | p.Init.PASSTHROUGH
    | p.Init.HAS_RESEND
)
# Not DONT_MASK: the kernel removes the umask's bits from the mode of new files.
# Not WRITEBACK_CACHE: it hides write errors from the writer and excludes passthrough.
# Not READDIRPLUS_AUTO: the kernel would ask for attributes with the first entries only, and for
# the others one by one. This module decides how many come with entries.


@dataclass(frozen=True, slots=True)
class Session:
    """What the operations of one mount use.

    Attributes:
        readers: answer READs; None if this process does.
        reads_directly: READs that need no window go to any thread (:class:`DirectRead`).
        on_serving: called once the connection is initialised, with whether the kernel can
            send requests again to a successor of this process (FUSE_NOTIFY_RESEND).
        read_log: notes what programs read.
    """

    filesystem: FileSystem
    metrics: VolumeMetrics
    callers: Callers
    backing_files: BackingFiles
    open_policy: OpenPolicy
    readers: ReaderPool | None
    reads_directly: bool
    on_serving: Callable[[bool], None]
    read_log: ReadLog


# --- outcomes -------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """A reply, what to do once it was written, and which failure it reports.

    Attributes:
        afterwards: called once the reply was written, or could not be.
        failure: the failure that the reply reports, for the metrics.
    """

    reply: Reply
    afterwards: Callable[[], None] | None = None
    failure: SidecarError | None = None


class Refusal(NamedTuple):
    """An errno that is no failure: the kernel goes on by itself."""

    errno: int


class HandedOn:
    """A reader process answers, and counts the answer."""


Outcome = Reply | HandedOn | Answer | DirectRead | Refusal | None
"""Mostly a reply. None: the kernel wants no answer."""

Handler = Callable[[Session, Request, bool], Outcome]
"""Serves one opcode. The flag says whether it may wait; if not, it may raise WouldBlock."""

_HANDED_ON = HandedOn()


# --- the connection -------------------------------------------------------------------------------


def init(session: Session, request: Request, _wait: bool) -> Outcome:
    """Negotiate: those of the wanted features that the kernel offers."""
    offered = codec.init_in(request.body)
    if offered.major < p.MAJOR:
        return Refusal(errno.EPROTO)
    agreed = int(offered.flags & _WANTED)
    session.filesystem.recovery.begin()
    return Answer(
        [codec.init_out(offered.max_readahead_bytes, agreed)],
        functools.partial(session.on_serving, bool(agreed & p.Init.HAS_RESEND)),
    )


def destroy(_session: Session, _request: Request, _wait: bool) -> Outcome:
    """The file system is being unmounted; the read(2) that follows says ENODEV."""
    return []


def interrupt(session: Session, request: Request, _wait: bool) -> Outcome:
    """A program that waits for an answer got a signal. A killed one is answered at once."""
    session.callers.interrupt(codec.interrupt_in(request.body))
    return None


# --- names and attributes -------------------------------------------------------------------------


def lookup(session: Session, request: Request, wait: bool) -> Outcome:
    """A component of a path."""
    name = codec.name_in(request.body)
    try:
        entry = session.filesystem.lookup(request.inode, name, wait=wait)
    except NotFound as error:
        if type(error) is NotFound:
            ttl_s = session.filesystem.absence_ttl_s(request.inode, name)
            if ttl_s > 0:
                return Answer([codec.absent_entry_out(ttl_s)], failure=error)
        raise
    return [codec.entry_out(entry)]


def forget(session: Session, request: Request, _wait: bool) -> Outcome:
    """The kernel no longer holds some lookups, of one inode or of many."""
    if request.opcode == Opcode.FORGET:
        forgotten = [(request.inode, codec.forget_in(request.body))]
    else:
        forgotten = codec.batch_forget_in(request.body)
    for inode, count in forgotten:
        session.filesystem.forget(inode, count)
    if session.readers is not None and not session.open_policy.needed:
        session.readers.close_inodes([inode for inode, _ in forgotten])
    return None


def get_attributes(session: Session, request: Request, wait: bool) -> Outcome:
    """stat(2)."""
    return [codec.attr_out(session.filesystem.get_attributes(request.inode, wait=wait))]


def set_attributes(session: Session, request: Request, _wait: bool) -> Outcome:
    """chmod(2), chown(2), utimensat(2), truncate(2)."""
    changes, mtime_now, size_bytes = codec.setattr_in(request.body)
    if mtime_now:
        changes["mtime_ns"] = time.time_ns()
    entry = session.filesystem.set_attributes(request.inode, changes, size_bytes)
    return [codec.attr_out(entry)]


def make_directory(session: Session, request: Request, _wait: bool) -> Outcome:
    """mkdir(2)."""
    name, mode = codec.mkdir_in(request.body)
    entry = session.filesystem.make_directory(request.inode, name, mode, request.caller)
    return [codec.entry_out(entry)]


def remove_directory(session: Session, request: Request, _wait: bool) -> Outcome:
    """rmdir(2)."""
    session.filesystem.remove_directory(request.inode, codec.name_in(request.body))
    return []


def unlink(session: Session, request: Request, _wait: bool) -> Outcome:
    """unlink(2)."""
    session.filesystem.unlink(request.inode, codec.name_in(request.body))
    return []


def rename(session: Session, request: Request, _wait: bool) -> Outcome:
    """rename(2), and renameat2(2), which has flags."""
    decode = codec.rename_in if request.opcode == Opcode.RENAME else codec.rename2_in
    name, new_parent, new_name, flags = decode(request.body)
    session.filesystem.rename(request.inode, name, new_parent, new_name, flags)
    return []


def link(session: Session, _request: Request, _wait: bool) -> Outcome:
    """link(2)."""
    session.filesystem.link()


def make_node(session: Session, request: Request, _wait: bool) -> Outcome:
    """mknod(2)."""
    name, mode = codec.mknod_in(request.body)
    entry = session.filesystem.make_node(request.inode, name, mode, request.caller)
    return [codec.entry_out(entry)]


def symlink(session: Session, request: Request, _wait: bool) -> Outcome:
    """symlink(2)."""
    name, target = codec.symlink_in(request.body)
    entry = session.filesystem.symlink(request.inode, name, target, request.caller)
    return [codec.entry_out(entry)]


def read_link(session: Session, request: Request, wait: bool) -> Outcome:
    """readlink(2)."""
    return [session.filesystem.read_link(request.inode, wait=wait)]


def statistics(session: Session, _request: Request, _wait: bool) -> Outcome:
    """statfs(2)."""
    return [codec.statfs_out(session.filesystem.statistics())]


# --- directories ----------------------------------------------------------------------------------


def open_directory(session: Session, request: Request, _wait: bool) -> Outcome:
    """opendir(3)."""
    return [codec.open_out(session.filesystem.open_directory(request.inode), 0)]


def release_directory(session: Session, request: Request, _wait: bool) -> Outcome:
    """closedir(3)."""
    session.filesystem.release_directory(codec.handle_in(request.body))
    return []


def read_directory(session: Session, request: Request, wait: bool) -> Outcome:
    """readdir(3), names only."""
    handle, offset, size = codec.read_in(request.body)
    reply = bytearray()
    last = offset
    try:
        for line in session.filesystem.read_directory(handle, offset, wait=wait):
            name = os.fsencode(line.name)
            if len(reply) + p.dirent_bytes(len(name), plus=False) > size:
                break
            codec.add_dirent(reply, line.inode, line.offset, name, line.type_mode)
            last = line.offset
    except WouldBlock:
        if not reply:
            raise  # otherwise the entries that are here are answered; the kernel asks for the rest
    session.filesystem.entries_read(handle, last)
    return [reply]


def read_directory_plus(session: Session, request: Request, wait: bool) -> Outcome:
    """readdir(3), with what each name leads to."""
    filesystem = session.filesystem
    handle, last, size = codec.read_in(request.body)
    reply = bytearray()
    while not reply and (lines := _lines_plus(filesystem, handle, last, size, wait)):
        last = lines[-1][0].offset
        names = [line.name for line, _ in lines if line.name not in (".", "..")]
        entries = filesystem.enter(handle, names)
        gone = {name for name in names if name not in entries}
        for line, name in lines:
            entry = entries.get(line.name)
            if line.name not in gone:
                codec.add_direntplus(reply, entry, line.inode, line.offset, name, line.type_mode)
    filesystem.entries_read(handle, last)
    return [reply]


def _lines_plus(
    filesystem: FileSystem, handle: int, offset: int, size: int, wait: bool
) -> list[tuple[DirectoryEntry, bytes]]:
    """As many entries as a reply of READDIRPLUS has room for, with their encoded names."""
    lines: list[tuple[DirectoryEntry, bytes]] = []
    try:
        for line in filesystem.read_directory(handle, offset, wait=wait):
            name = os.fsencode(line.name)
            size -= p.dirent_bytes(len(name), plus=True)
            if size < 0:
                break
            lines.append((line, name))
    except SidecarError:
        if not lines:
            raise  # otherwise the entries that are here are answered; the kernel asks for the rest
    return lines


def synchronise_directory(_session: Session, _request: Request, _wait: bool) -> Outcome:
    """fsync(2): changes of names are in the store when their system call returns."""
    return []


# --- files ----------------------------------------------------------------------------------------


def create(session: Session, request: Request, _wait: bool) -> Outcome:
    """open(2) with O_CREAT."""
    (name, mode), flags = codec.create_in(request.body)
    entry, handle = session.filesystem.create(request.inode, name, mode, flags, request.caller)
    return [codec.entry_out(entry), codec.open_out(handle, p.Open.KEEP_CACHE)]


def open_file(session: Session, request: Request, wait: bool) -> Outcome:
    """open(2)."""
    filesystem, policy = session.filesystem, session.open_policy
    flags = codec.open_in(request.body)
    if not policy.needed:
        version = filesystem.version(request.inode)
        if not policy.is_answered(version, others_open=session.backing_files.in_use):
            # The kernel then opens and closes files without asking (FUSE_NO_OPEN_SUPPORT).
            return Refusal(errno.ENOSYS)
    if flags & os.O_TRUNC and not wait:
        raise WouldBlock("truncate")
    backing_id = None
    if filesystem.read_only:
        copy = functools.partial(filesystem.open_copy, request.inode)
        backing_id = session.backing_files.acquire(request.inode, copy)
    try:
        handle = filesystem.open(request.inode, flags, backing_id, wait=wait)
    except BaseException:
        if filesystem.read_only:
            session.backing_files.release(request.inode)
        raise
    if backing_id is not None:
        session.metrics.passthrough_opens.inc()
        session.read_log.note_whole(filesystem.version(request.inode))  # its READs are not seen
        how = p.Open.PASSTHROUGH | p.Open.NOFLUSH
    elif flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:
        # An inode is one version, so the kernel's pages of it are always right, and close(2)
        # waits for nothing. (With O_TRUNC it waits: the file is empty now.)
        how = p.Open.KEEP_CACHE | p.Open.NOFLUSH
    else:
        how = p.Open.KEEP_CACHE
    return [codec.open_out(handle, how, backing_id)]


def read(session: Session, request: Request, wait: bool) -> Outcome:
    """pread(2)."""
    handle, offset, size = codec.read_in(request.body)
    filesystem, readers = session.filesystem, session.readers
    # Several threads serve READs that may wait, and the reader pool has no lock.
    if readers is not None and not wait:
        # By its handle if it has one: closing that gives its room in the disk cache back. The
        # kernel's handle is 0 if it opened the file by itself.
        if handle or session.open_policy.needed:
            opened, info = handle, filesystem.pinned(handle)
        else:
            opened, info = None, filesystem.version(request.inode)
        if info is not None:
            session.read_log.note(info.key, offset, min(offset + size, info.size_bytes))
            _, unique, inode, _, _, _, thread = request
            session.callers.wait_elsewhere(unique, thread)
            if session.reads_directly:
                wanted = min(size, info.size_bytes - offset)
                if readers.is_direct(inode, opened, info, offset, wanted):
                    began_s = time.perf_counter()
                    return DirectRead(unique, inode, opened, info, offset, wanted, began_s)
            readers.read(unique, inode, opened, info, offset, size)
            return _HANDED_ON
    result = filesystem.read(handle, offset, size, wait=wait)
    return Answer(result.views, result.release)


def write(session: Session, request: Request, _wait: bool) -> Outcome:
    """pwrite(2)."""
    handle, offset, data = codec.write_in(request.body)
    return [codec.write_out(session.filesystem.write(handle, offset, data))]


def flush(session: Session, request: Request, _wait: bool) -> Outcome:
    """close(2) of one descriptor, if its program still wants to know the result."""
    if not session.open_policy.needed:
        return Refusal(errno.ENOSYS)  # nothing is written, and the kernel does not ask again
    handle = codec.handle_in(request.body)
    # A killed program does not get the result, and must not hang while gigabytes are sent: what it
    # wrote is saved after its RELEASE.
    if not is_killed(request.thread):
        session.filesystem.flush(handle)
    return []


def synchronise(session: Session, request: Request, _wait: bool) -> Outcome:
    """fsync(2), fdatasync(2)."""
    if not session.open_policy.needed:
        return Refusal(errno.ENOSYS)
    session.filesystem.flush(codec.handle_in(request.body))
    return []


def release(session: Session, request: Request, wait: bool) -> Outcome:
    """The last descriptor of an open file was closed."""
    handle = codec.handle_in(request.body)
    session.filesystem.release(handle, wait=wait)
    if session.readers is not None:
        session.readers.close_handle(handle)
    if session.filesystem.read_only:
        session.backing_files.release(request.inode)
    return []


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """How an opcode is served.

    Attributes:
        waits: it changes something or waits for a disk, so it never runs in the thread that
            reads requests.
        gives: it gives out inodes or handles, which are taken back if the answer never left.
        once: it changes names, and doing it twice is not the same as doing it once. Its answer
            is remembered, in case the request is sent again.
    """

    handler: Handler
    waits: bool = False
    gives: bool = False
    once: bool = False


OPERATIONS: dict[int, Operation | Refusal] = {
    Opcode.LOOKUP: Operation(lookup, gives=True),
    Opcode.FORGET: Operation(forget),
    Opcode.GETATTR: Operation(get_attributes),
    Opcode.SETATTR: Operation(set_attributes, waits=True),
    Opcode.READLINK: Operation(read_link),
    Opcode.SYMLINK: Operation(symlink, waits=True, gives=True, once=True),
    Opcode.MKNOD: Operation(make_node, waits=True, gives=True, once=True),
    Opcode.MKDIR: Operation(make_directory, waits=True, gives=True, once=True),
    Opcode.UNLINK: Operation(unlink, waits=True, once=True),
    Opcode.RMDIR: Operation(remove_directory, waits=True, once=True),
    Opcode.RENAME: Operation(rename, waits=True, once=True),
    Opcode.LINK: Operation(link),
    Opcode.OPEN: Operation(open_file, gives=True),
    Opcode.READ: Operation(read),
    Opcode.WRITE: Operation(write, waits=True),
    Opcode.STATFS: Operation(statistics),
    Opcode.RELEASE: Operation(release),
    Opcode.FSYNC: Operation(synchronise, waits=True),
    # The kernel remembers ENOSYS, and then answers EOPNOTSUPP without asking. That saves one
    # question about security.capability for each write(2).
    Opcode.SETXATTR: Refusal(errno.ENOSYS),
    Opcode.GETXATTR: Refusal(errno.ENOSYS),
    Opcode.LISTXATTR: Refusal(errno.ENOSYS),
    Opcode.REMOVEXATTR: Refusal(errno.ENOSYS),
    Opcode.FLUSH: Operation(flush, waits=True),
    Opcode.INIT: Operation(init),
    Opcode.OPENDIR: Operation(open_directory, gives=True),
    Opcode.READDIR: Operation(read_directory),
    Opcode.RELEASEDIR: Operation(release_directory),
    Opcode.FSYNCDIR: Operation(synchronise_directory),
    # Locks are not negotiated: the kernel keeps them itself, for this mount alone.
    Opcode.GETLK: Refusal(errno.ENOSYS),
    Opcode.SETLK: Refusal(errno.ENOSYS),
    Opcode.SETLKW: Refusal(errno.ENOSYS),
    Opcode.ACCESS: Refusal(errno.ENOSYS),  # default_permissions: the kernel decides
    Opcode.CREATE: Operation(create, waits=True, gives=True, once=True),
    Opcode.INTERRUPT: Operation(interrupt),
    Opcode.BMAP: Refusal(errno.ENOSYS),
    Opcode.DESTROY: Operation(destroy),
    Opcode.IOCTL: Refusal(errno.ENOTTY),
    Opcode.POLL: Refusal(errno.ENOSYS),
    Opcode.NOTIFY_REPLY: Refusal(errno.ENOSYS),
    Opcode.BATCH_FORGET: Operation(forget),
    Opcode.FALLOCATE: Refusal(errno.EOPNOTSUPP),
    Opcode.READDIRPLUS: Operation(read_directory_plus, gives=True),
    Opcode.RENAME2: Operation(rename, waits=True, once=True),
    Opcode.LSEEK: Refusal(errno.ENOSYS),  # the kernel then uses the size
    Opcode.COPY_FILE_RANGE: Refusal(errno.EOPNOTSUPP),  # the kernel then copies itself
    Opcode.SETUPMAPPING: Refusal(errno.ENOSYS),
    Opcode.REMOVEMAPPING: Refusal(errno.ENOSYS),
    Opcode.SYNCFS: Refusal(errno.ENOSYS),
    Opcode.TMPFILE: Refusal(errno.EOPNOTSUPP),
    Opcode.STATX: Refusal(errno.ENOSYS),  # the kernel then asks GETATTR
    Opcode.COPY_FILE_RANGE_64: Refusal(errno.ENOSYS),
}
"""Every opcode of the protocol: served, or answered with a chosen errno."""

UNKNOWN = Refusal(errno.ENOSYS)
"""The answer to every other opcode."""
UNANSWERED = frozenset((Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY))
"""The kernel wants no answer to these, not even an errno."""
