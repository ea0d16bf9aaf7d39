"""Every error of the product, its stable code, and the errno that a program sees.

Codes are part of the interface: logs, events, metrics, the status page and the termination message
show them. docs/troubleshooting.md says when each comes and what to do. A code is never used again
for something else.
"""

from __future__ import annotations

import errno as _errno
from typing import Any, ClassVar

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_MOUNT = 3
EXIT_NOT_SAVED = 4


def printable(text: str) -> str:
    """``text`` on one line, with escapes in place of characters that a log or a terminal obeys.

    Messages may contain names of files, objects and containers that others gave.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class SidecarError(Exception):
    """Anything that a user is told about: one line, one code.

    Args:
        what: what is wrong and where, without secrets and without a full stop at the end.
        hint: what the reader can do about it; empty if there is nothing sensible to say.
    """

    code: ClassVar[str] = "SC1000"
    name: ClassVar[str] = "INTERNAL"
    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    @property
    def message(self) -> str:
        """What is wrong and what to do, on one line."""
        text = f"{self.what}; {self.hint}" if self.hint else self.what
        return printable(" ".join(text.split()))

    def line(self) -> str:
        """The one line that a command prints: ``error SCnnnn NAME: message``."""
        return f"error {self.code} {self.name}: {self.message}"

    def to_message(self) -> dict[str, str]:
        """The error as another process gets it; :func:`from_message` rebuilds it."""
        return {"code": self.code, "what": self.what, "hint": self.hint}

    def document(self) -> dict[str, str]:
        """The error as the status document shows it."""
        return {"code": self.code, "name": self.name, "message": self.message}


def from_message(message: dict[str, Any]) -> SidecarError:
    """The error of a message with the keys of :meth:`SidecarError.to_message`."""
    pending: list[type[SidecarError]] = [SidecarError]
    while pending:
        cls = pending.pop()
        if cls.code == message["code"]:
            return cls(message["what"], message["hint"])
        pending.extend(cls.__subclasses__())
    return SidecarError(message["what"], message["hint"])


class UsageError(SidecarError):
    code, name, exit_status = "SC1001", "USAGE", EXIT_USAGE


# --- configuration -----------------------------------------------------------------


class ConfigError(SidecarError):
    """The admin's or the user's input must change."""

    exit_status = EXIT_USAGE


class CatalogueInvalid(ConfigError):
    code, name = "SC1002", "CATALOGUE_INVALID"


class UnknownKey(ConfigError):
    code, name = "SC1003", "UNKNOWN_KEY"


class SourceConflict(ConfigError):
    code, name = "SC1004", "SOURCE_CONFLICT"


class SourceMissing(ConfigError):
    code, name = "SC1005", "SOURCE_MISSING"


class SchemeMismatch(ConfigError):
    code, name = "SC1006", "SCHEME_MISMATCH"


class BucketMissing(ConfigError):
    code, name = "SC1007", "BUCKET_MISSING"


class BucketUrlInvalid(ConfigError):
    code, name = "SC1008", "BUCKET_URL_INVALID"


class SecretIncomplete(ConfigError):
    code, name = "SC1009", "SECRET_INCOMPLETE"


class MountPathInvalid(ConfigError):
    code, name = "SC1010", "MOUNT_PATH_INVALID"


class SpecInvalid(ConfigError):
    code, name = "SC1011", "SPEC_INVALID"


class ManifestInvalid(ConfigError):
    code, name = "SC1012", "MANIFEST_INVALID"


class PodUnsupported(ConfigError):
    code, name = "SC1013", "POD_UNSUPPORTED"


class PodConflict(ConfigError):
    code, name = "SC1014", "POD_CONFLICT"


class AnnotationInvalid(ConfigError):
    code, name = "SC1015", "ANNOTATION_INVALID"


class SpecTooLarge(ConfigError):
    code, name = "SC1016", "SPEC_TOO_LARGE"


class ReviewInvalid(ConfigError):
    code, name = "SC1017", "REVIEW_INVALID"


class CertificateInvalid(ConfigError):
    code, name = "SC1018", "CERTIFICATE_INVALID"


class SpecChanged(ConfigError):
    code, name = "SC1019", "SPEC_CHANGED"


class VolumeUnknown(ConfigError):
    code, name = "SC1020", "VOLUME_UNKNOWN"


class DuplicateSelection(ConfigError):
    code, name = "SC1021", "DUPLICATE_SELECTION"


class PathOverlap(ConfigError):
    code, name = "SC1022", "PATH_OVERLAP"


class OutputsReadOnly(ConfigError):
    code, name = "SC1023", "OUTPUTS_READ_ONLY"


class OutputsMissing(ConfigError):
    code, name = "SC1024", "OUTPUTS_MISSING"


class SelectionInvalid(ConfigError):
    code, name = "SC1025", "SELECTION_INVALID"


class RunPathInvalid(ConfigError):
    code, name = "SC1026", "RUN_PATH_INVALID"


class OptionInvalid(ConfigError):
    code, name = "SC1027", "OPTION_INVALID"


class OptionRefused(ConfigError):
    code, name = "SC1028", "OPTION_REFUSED"


# --- credentials -------------------------------------------------------------------


class CredentialError(SidecarError):
    """A secret cannot be used. Messages name files and keys, never values."""

    exit_status = EXIT_MOUNT


class SecretFileMissing(CredentialError):
    code, name = "SC1030", "SECRET_FILE_MISSING"


class SecretNotJson(CredentialError):
    code, name = "SC1031", "SECRET_NOT_JSON"


class SecretKeyMissing(CredentialError):
    code, name = "SC1032", "SECRET_KEY_MISSING"


class SecretInvalid(CredentialError):
    code, name = "SC1033", "SECRET_INVALID"


# --- the object store --------------------------------------------------------------


class StoreError(SidecarError):
    """What a store answered, translated at one seam."""

    exit_status = EXIT_MOUNT


class NotFound(StoreError):
    """The object, or the path in the file system, does not exist."""

    code, name = "SC1040", "NOT_FOUND"


class AccessDenied(StoreError):
    code, name = "SC1041", "ACCESS_DENIED"


class BucketNotFound(StoreError):
    code, name = "SC1042", "BUCKET_NOT_FOUND"


class LoginRejected(AccessDenied):
    """The store does not know the key, or the signature does not match."""

    code, name = "SC1043", "LOGIN_REJECTED"


class ProxyDenied(AccessDenied):
    """A proxy refuses the login, or the way to the store."""

    code, name = "SC1057", "PROXY_DENIED"


class Stale(StoreError):
    """The version that a handle pinned is no longer the object's version."""

    code, name = "SC1044", "STALE"


class Unavailable(StoreError):
    """An outage longer than the retry budget. The next call tries again."""

    code, name = "SC1045", "UNAVAILABLE"


class TlsUntrusted(Unavailable):
    code, name = "SC1046", "TLS_UNTRUSTED"


class EndpointUnreachable(Unavailable):
    code, name = "SC1047", "ENDPOINT_UNREACHABLE"


class AlreadyExists(StoreError):
    """A conditional write found another writer's object."""

    code, name = "SC1048", "ALREADY_EXISTS"


class TooLarge(StoreError):
    code, name = "SC1049", "TOO_LARGE"


class Unsupported(StoreError):
    """An object store cannot do it, or this product does not yet: refused, never ignored."""

    code, name = "SC1050", "UNSUPPORTED"


class QuotaExceeded(StoreError):
    code, name = "SC1051", "QUOTA_EXCEEDED"


class StoreProtocolError(StoreError):
    code, name = "SC1052", "STORE_PROTOCOL"


class WriteDenied(AccessDenied):
    """The volume is not read-only, and the login may list it, but not write to it."""

    code, name = "SC1053", "WRITE_DENIED"


class DeleteDenied(AccessDenied):
    """The login may write to a volume but not delete: no file could be renamed or replaced."""

    code, name = "SC1054", "DELETE_DENIED"


class ObjectArchived(StoreError):
    """The object is in a storage class from which it must be restored first."""

    code, name = "SC1055", "OBJECT_ARCHIVED"


class RegionMismatch(StoreError):
    """The bucket is in another region than requests are signed for, or at another endpoint."""

    code, name = "SC1056", "REGION_MISMATCH"


_ORDINARY = (NotFound, Stale, AlreadyExists, Unsupported)


def is_store_failure(error: SidecarError) -> bool:
    """Whether a call failed because of the store. Answers of a healthy store are no failures."""
    return isinstance(error, StoreError | CredentialError) and not isinstance(error, _ORDINARY)


# --- the file system ---------------------------------------------------------------


class FileSystemError(SidecarError):
    """A rule of SEMANTICS.md, answered with an errno."""


class ReadOnly(FileSystemError):
    code, name = "SC1060", "READ_ONLY"


class NotADirectory(FileSystemError):
    code, name = "SC1061", "NOT_A_DIRECTORY"


class IsADirectory(FileSystemError):
    code, name = "SC1062", "IS_A_DIRECTORY"


class NotEmpty(FileSystemError):
    code, name = "SC1063", "NOT_EMPTY"


class NameTooLong(FileSystemError):
    code, name = "SC1064", "NAME_TOO_LONG"


class NameInvalid(FileSystemError):
    """A name that no key can spell, such as one that is not UTF-8."""

    code, name = "SC1065", "NAME_INVALID"


class BadHandle(FileSystemError):
    code, name = "SC1066", "BAD_HANDLE"


class SpoolFull(FileSystemError):
    code, name = "SC1067", "SPOOL_FULL"


class InvalidArgument(FileSystemError):
    code, name = "SC1068", "INVALID_ARGUMENT"


class FileExists(FileSystemError):
    code, name = "SC1069", "FILE_EXISTS"


class NodeForgotten(FileSystemError):
    """The kernel asked about an inode that this process never gave out."""

    code, name = "SC1070", "NODE_FORGOTTEN"


class NotPermitted(FileSystemError):
    """Hard links and device files: EPERM, as link(2) and mknod(2) say."""

    code, name = "SC1074", "NOT_PERMITTED"


class WouldBlock(FileSystemError):
    """Passes between a transport and the file system only; no program ever sees it."""

    code, name = "SC1075", "WOULD_BLOCK"


class TimeIsUp(FileSystemError):
    """close(2) waits no longer: the pod's grace period is nearly over."""

    code, name = "SC1076", "TIME_IS_UP"


# --- the Kubernetes API ------------------------------------------------------------


class ClusterError(SidecarError):
    """What the Kubernetes API answered, translated at one seam (:mod:`sidecar.cluster.api`)."""

    exit_status = EXIT_MOUNT


class ApiForbidden(ClusterError):
    code, name = "SC1100", "API_FORBIDDEN"


class ApiConflict(ClusterError):
    code, name = "SC1101", "API_CONFLICT"


class ApiNotFound(ClusterError):
    code, name = "SC1102", "API_NOT_FOUND"


class ApiGone(ClusterError):
    code, name = "SC1103", "API_GONE"


class ApiUnavailable(ClusterError):
    """No connection, too many requests, or an error of the server.

    Attributes:
        retry_after_s: how long the server asks to be left alone.
    """

    code, name = "SC1104", "API_UNAVAILABLE"
    retry_after_s: float = 0.0


class ApiRefused(ClusterError):
    code, name = "SC1105", "API_REFUSED"


class NotInCluster(ClusterError):
    code, name = "SC1106", "NOT_IN_CLUSTER"


# --- the host ----------------------------------------------------------------------


class HostError(SidecarError):
    """The machine or the container lacks something that mounting needs."""

    exit_status = EXIT_MOUNT


class NotRoot(HostError):
    code, name = "SC1080", "NOT_ROOT"


class FuseDeviceMissing(HostError):
    code, name = "SC1081", "FUSE_DEVICE_MISSING"


class MountFailed(HostError):
    code, name = "SC1082", "MOUNT_FAILED"


class PathMissing(HostError):
    code, name = "SC1083", "PATH_MISSING"


class PathNotReadable(HostError):
    code, name = "SC1084", "PATH_NOT_READABLE"


class PathNotWritable(HostError):
    code, name = "SC1085", "PATH_NOT_WRITABLE"


class StateUnusable(HostError):
    code, name = "SC1086", "STATE_UNUSABLE"


class ProbeTimeout(HostError):
    code, name = "SC1087", "PROBE_TIMEOUT"


class WorkerLost(HostError):
    code, name = "SC1088", "WORKER_LOST"


class NotSaved(HostError):
    """The sidecar stopped and something is only in the spool."""

    code, name, exit_status = "SC1089", "NOT_SAVED", EXIT_NOT_SAVED


class PortInUse(HostError):
    code, name = "SC1090", "PORT_IN_USE"


class ReadyTimeout(HostError):
    code, name = "SC1091", "READY_TIMEOUT"


class DependencyMissing(HostError):
    code, name = "SC1092", "DEPENDENCY_MISSING"


class DemoFailed(HostError):
    """A step of ``sidecar demo`` did not do what it shows."""

    code, name = "SC1093", "DEMO_FAILED"


class WorkerHung(HostError):
    code, name = "SC1094", "WORKER_HUNG"


class MountLost(HostError):
    """A container has a volume through a sub-path of a mount that is gone."""

    code, name = "SC1095", "MOUNT_LOST"


class MemoryTooSmall(HostError):
    code, name = "SC1096", "MEMORY_TOO_SMALL"


# --- the errno table ---------------------------------------------------------------

ERRNO: dict[type[SidecarError], int] = {
    NotFound: _errno.ENOENT,
    BucketNotFound: _errno.EIO,  # the mount's root exists; its content cannot be had
    AccessDenied: _errno.EACCES,
    LoginRejected: _errno.EACCES,
    Stale: _errno.ESTALE,
    Unavailable: _errno.EIO,
    TlsUntrusted: _errno.EIO,
    EndpointUnreachable: _errno.EIO,
    AlreadyExists: _errno.EEXIST,
    TooLarge: _errno.EFBIG,
    Unsupported: _errno.EOPNOTSUPP,
    QuotaExceeded: _errno.EDQUOT,
    StoreProtocolError: _errno.EIO,
    ObjectArchived: _errno.EACCES,  # no call will read it until somebody has done something
    RegionMismatch: _errno.EIO,
    CredentialError: _errno.EACCES,
    ReadOnly: _errno.EROFS,
    NotADirectory: _errno.ENOTDIR,
    IsADirectory: _errno.EISDIR,
    NotEmpty: _errno.ENOTEMPTY,
    NameTooLong: _errno.ENAMETOOLONG,
    NameInvalid: _errno.EILSEQ,
    BadHandle: _errno.EBADF,
    SpoolFull: _errno.ENOSPC,
    InvalidArgument: _errno.EINVAL,
    FileExists: _errno.EEXIST,
    NodeForgotten: _errno.ESTALE,
    TimeIsUp: _errno.EIO,
    NotPermitted: _errno.EPERM,
    WouldBlock: _errno.EAGAIN,
    SidecarError: _errno.EIO,
}
"""The only place where an error becomes an errno (errno(3), fuse replies)."""


def to_errno(error: BaseException) -> int:
    """The errno of an error: by its nearest class in :data:`ERRNO`, ``OSError``'s own, or EIO."""
    if isinstance(error, SidecarError):
        for cls in type(error).__mro__:
            if cls in ERRNO:
                return ERRNO[cls]
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return _errno.EIO
