"""The portable transport: fusepy on libfuse 2, which asks by path.

It walks the directories of a path for each request, and libfuse (not the kernel) remembers which
path is which. The consequences are listed in SEMANTICS.md, "Transports".
"""

from __future__ import annotations

import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sidecar.errors import DependencyMissing, NotFound, SidecarError, Stale, to_errno
from sidecar.metrics import VolumeMetrics
from sidecar.mounter.filesystem.filesystem import FileSystem
from sidecar.mounter.filesystem.inodes.attributes import BLOCK_BYTES, Attributes, Caller
from sidecar.mounter.filesystem.inodes.inode import Directory, Inode
from sidecar.mounter.fuse.protocol import UNKNOWN_INO
from sidecar.mounter.system.mounts import SUBTYPE

_ENCODING = "latin-1"
"""fusepy decodes strictly. Latin-1 carries any bytes; _decode() and _encode() use the real one."""
# utimensat(2): values of tv_nsec that stand for no time. fusepy adds them to zero seconds.
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_REMEMBERED_PATHS = 100_000
_READ_BYTES = 128 * 1024  # the longest read of libfuse 2


def serve(
    filesystem: FileSystem,
    mountpoint: str,
    source: str,
    metrics: VolumeMetrics,
    on_mounted: Callable[[], None],
) -> None:
    """Mount and serve until somebody unmounts.

    Args:
        source: what mount(8) shows, such as ``s3://bucket``.
        on_mounted: called when the kernel sends its first request.

    Raises:
        DependencyMissing: libfuse 2 is not installed.
    """
    try:
        import fuse
    except OSError:
        raise DependencyMissing(
            "libfuse 2 is not installed", "install Debian's libfuse2 (libfuse2t64 since 13)"
        ) from None
    ttl_s = filesystem.ttl_s
    fuse.FUSE(
        _PathOperations(filesystem, metrics, on_mounted, fuse.fuse_get_context),
        mountpoint,
        raw_fi=True,
        encoding=_ENCODING,
        foreground=True,
        allow_other=True,
        default_permissions=True,
        nonempty=True,
        fsname=source.replace(",", "\\,"),
        subtype=SUBTYPE,
        ro=filesystem.read_only,
        nosuid=True,
        nodev=True,
        use_ino=True,
        hard_remove=True,  # the file system handles unlinked open files
        big_writes=True,
        atomic_o_trunc=True,  # otherwise open(O_TRUNC) would save an empty object first
        max_read=_READ_BYTES,
        entry_timeout=ttl_s,
        attr_timeout=ttl_s,
        negative_timeout=ttl_s,
    )


class _PathOperations:
    """fusepy's operations. fusepy calls the instance with the operation's name.

    Args:
        context: uid, gid and pid of the process whose request this thread serves. The kernel
            has already removed the umask's bits from the mode of new files.
    """

    use_ns = True
    flag_nullpath_ok = True
    flag_nopath = True
    flag_utime_omit_ok = True  # otherwise libfuse drops a change of one of the two times

    def __init__(
        self,
        filesystem: FileSystem,
        metrics: VolumeMetrics,
        on_mounted: Callable[[], None],
        context: Callable[[], tuple[int, int, int]],
    ) -> None:
        self._fs = filesystem
        self._metrics = metrics
        self._on_mounted = on_mounted
        self._context = context
        self._opened: OrderedDict[str, int] = OrderedDict()  # inodes by path
        self._told: OrderedDict[str, int] = OrderedDict()  # inodes whose attributes the kernel has
        self._held: OrderedDict[int, None] = OrderedDict()  # inodes

    def __call__(self, operation: str, *arguments: Any) -> Any:
        began_s = time.perf_counter()
        failure: BaseException | None = None
        try:
            return getattr(self, operation)(*arguments)
        except (SidecarError, OSError) as error:
            failure = error
            raise OSError(to_errno(error), str(error)) from None
        finally:
            self._metrics.operation(operation, time.perf_counter() - began_s, failure)

    # --- names -------------------------------------------------------------------------

    def init(self, _path: str) -> None:
        self._on_mounted()

    def destroy(self, _path: str) -> None:
        """The mount is gone; the worker ends when serve() returns."""

    def getattr(self, path: str | None, fi: Any = None) -> dict[str, int]:
        inode = self._fs.inode(fi.fh) if fi is not None else self._walk(path or "/")
        self._hold(inode)
        attributes = self._fs.attributes(inode)
        if path is not None:
            _remember(self._told, path, inode.id)
        return _stat(attributes)

    def chmod(self, path: str, mode: int) -> None:
        self._fs.set_attributes(self._walk(path).id, {"mode": stat.S_IMODE(mode)})

    def chown(self, path: str, uid: int, gid: int) -> None:
        changes = {"uid": uid, "gid": gid}
        self._fs.set_attributes(
            self._walk(path).id, {name: value for name, value in changes.items() if value != -1}
        )

    def utimens(self, path: str, times: tuple[int, int] | None) -> None:
        mtime_ns = times[1] if times is not None else _UTIME_NOW
        if mtime_ns == _UTIME_OMIT:
            return
        if mtime_ns == _UTIME_NOW:
            mtime_ns = time.time_ns()
        self._fs.set_attributes(self._walk(path).id, {"mtime_ns": mtime_ns})

    def truncate(self, path: str | None, length: int, fi: Any = None) -> None:
        inode = self._fs.inode(fi.fh) if fi is not None else self._walk(path or "/")
        self._fs.set_attributes(inode.id, {}, size_bytes=length)

    def statfs(self, _path: str) -> dict[str, int]:
        statistics = self._fs.statistics()
        return {
            "f_bsize": BLOCK_BYTES,
            "f_frsize": BLOCK_BYTES,
            "f_blocks": statistics.blocks,
            "f_bfree": statistics.blocks_free,
            "f_bavail": statistics.blocks_free,
            "f_files": statistics.files + statistics.files_free,
            "f_ffree": statistics.files_free,
            "f_favail": statistics.files_free,
            "f_namemax": statistics.name_max,
        }

    # --- directories --------------------------------------------------------------------

    def opendir(self, path: str) -> int:
        return self._fs.open_directory(self._walk(path).id)

    def readdir(self, _path: str | None, handle: int) -> list[tuple[str, dict[str, int], int]]:
        # Offset 0 makes libfuse buffer the whole directory: fusepy does not say at which offset the
        # kernel wants to continue. A list: fusepy would run a generator after this call, where its
        # errors become EINVAL and are not counted.
        lines = []
        for line in self._fs.read_directory(handle, 0):
            known = {
                "st_mode": line.type_mode,
                "st_ino": line.inode or UNKNOWN_INO,
            }
            lines.append((_encode(line.name), known, 0))
        return lines

    def releasedir(self, _path: str | None, handle: int) -> None:
        self._fs.release_directory(handle)

    def fsyncdir(self, *_arguments: Any) -> None:
        """Nothing: changes of names are in the store when their system call returns."""

    def mkdir(self, path: str, mode: int) -> None:
        parent, name = self._walk_parent(path)
        entry = self._fs.make_directory(parent.id, name, stat.S_IMODE(mode), self._caller())
        self._fs.forget(entry.attributes.inode, 1)

    def rmdir(self, path: str) -> None:
        parent, name = self._walk_parent(path)
        self._fs.remove_directory(parent.id, name)

    def unlink(self, path: str) -> None:
        parent, name = self._walk_parent(path)
        self._fs.unlink(parent.id, name)

    def rename(self, old: str, new: str) -> None:
        parent, name = self._walk_parent(old)
        new_parent, new_name = self._walk_parent(new)
        self._fs.rename(parent.id, name, new_parent.id, new_name, 0)
        for path in (old, new):
            self._told.pop(path, None)

    def mknod(self, path: str, mode: int, _device: int) -> None:
        parent, name = self._walk_parent(path)
        inode = self._fs.make_node(parent.id, name, mode, self._caller()).attributes.inode
        self._fs.forget(inode, 1)

    def symlink(self, path: str, target: str) -> None:
        parent, name = self._walk_parent(path)
        entry = self._fs.symlink(parent.id, name, target.encode(_ENCODING), self._caller())
        self._fs.forget(entry.attributes.inode, 1)

    def readlink(self, path: str) -> str:
        return self._fs.read_link(self._walk(path).id).decode(_ENCODING)

    def link(self, _target: str, _source: str) -> None:
        self._fs.link()

    # --- files --------------------------------------------------------------------------

    def create(self, path: str, mode: int, fi: Any) -> None:
        parent, name = self._walk_parent(path)
        entry, fi.fh = self._fs.create(parent.id, name, mode, fi.flags, self._caller())
        self._hold(self._fs.inode(fi.fh))
        self._fs.forget(entry.attributes.inode, 1)

    def open(self, path: str, fi: Any) -> None:
        told = self._told.pop(path, None)
        try:
            inode = self._walk(path)
        except NotFound as error:
            if told is None:
                raise
            raise Stale(error.what) from None
        if told not in (None, inode.id):
            # The kernel has the attributes of another version. After ESTALE it asks for those of
            # the whole path, and then opens again (fs/namei.c, do_filp_open).
            raise Stale(f"`{inode.key}` is another file by now")
        _remember(self._told, path, inode.id)
        fi.fh = self._fs.open(inode.id, fi.flags)
        # Here the kernel keeps pages by path. They are right while the path leads to the same
        # inode, which is one version.
        fi.keep_cache = self._opened.get(path) == inode.id
        _remember(self._opened, path, inode.id)

    def read(self, _path: str | None, size: int, offset: int, fi: Any) -> bytes:
        result = self._fs.read(fi.fh, offset, size)
        try:
            return b"".join(result.views)
        finally:
            result.release()

    def write(self, _path: str | None, data: bytes, offset: int, fi: Any) -> int:
        return self._fs.write(fi.fh, offset, data)

    def flush(self, _path: str | None, fi: Any) -> None:
        self._fs.flush(fi.fh)

    def fsync(self, _path: str | None, _data_only: int, fi: Any) -> None:
        self._fs.flush(fi.fh)

    def release(self, _path: str | None, fi: Any) -> None:
        self._fs.release(fi.fh)

    def _hold(self, inode: Inode) -> None:
        """Keep an inode's number: to SQLite a file whose number changes is another file."""
        if inode.id in self._held:
            return
        self._fs.hold(inode)
        self._held[inode.id] = None
        if len(self._held) > _REMEMBERED_PATHS:
            self._fs.forget(self._held.popitem(last=False)[0], 1)

    def _caller(self) -> Caller:
        uid, gid, _pid = self._context()
        return Caller(uid, gid)

    # --- paths to inodes ------------------------------------------------------------------

    def _walk(self, path: str) -> Inode:
        inode: Inode = self._fs.root
        for part in path.split("/"):
            if part:
                inode = self._fs.find(inode.id, _decode(part))
        return inode

    def _walk_parent(self, path: str) -> tuple[Directory, str]:
        directory, _, name = path.rpartition("/")
        parent = self._walk(directory)
        if not isinstance(parent, Directory):
            raise NotFound(f"`{parent.key}` is no directory")
        return parent, _decode(name)


def _remember(inodes: OrderedDict[str, int], path: str, inode: int) -> None:
    inodes[path] = inode
    if len(inodes) > _REMEMBERED_PATHS:
        inodes.popitem(last=False)


def _decode(part: str) -> str:
    return part.encode(_ENCODING).decode("utf-8", "surrogateescape")


def _encode(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode(_ENCODING)


def _stat(attributes: Attributes) -> dict[str, int]:
    return {
        "st_ino": attributes.inode,
        "st_mode": attributes.mode,
        "st_nlink": attributes.nlink,
        "st_size": attributes.size_bytes,
        "st_blocks": -(-attributes.size_bytes // 512),
        "st_uid": attributes.uid,
        "st_gid": attributes.gid,
        "st_mtime": attributes.mtime_ns,
        "st_ctime": attributes.mtime_ns,
        "st_atime": attributes.mtime_ns,
    }
