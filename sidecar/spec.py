"""PersistenceSpec: the contract between the control half and the mounter half.

Versioned JSON, strict and frozen. The control half writes it (``sidecar resolve``,
``sidecar inject``, the webhook), the mounter half reads it (``sidecar mount``). Every
default of the product is here: paths, ports, sizes, times.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sidecar.errors import SpecInvalid
from sidecar.units import GIB, MIB

SPEC_VERSION: Final = 1

SHARED_ROOT = "/mnt/persistence"
SECRETS_ROOT = "/var/run/sidecar/secrets"
STATE_ROOT = "/var/lib/sidecar"
TERMINATION_MESSAGE = "/dev/termination-log"
SPEC_FILE = "/etc/sidecar/spec.json"
KUBELET_PODS = "/var/lib/kubelet/pods"
HTTP_PORT = 9464

DATA_PATHS_VARIABLE = "POLYAXON_RUN_DATA_PATHS"
OUTPUTS_PATH_VARIABLE = "POLYAXON_RUN_OUTPUTS_PATH"

Kind = Literal["data", "outputs"]
StoreName = Literal["s3", "gcs", "azure"]
TransportName = Literal["kernel", "libfuse"]
Healing = Literal["resend", "remount"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class HostPathSource(_Strict):
    """A directory of the node, mounted by the kubelet at the volume's path."""

    type: Literal["hostPath"] = "hostPath"
    host_path: str


class ClaimSource(_Strict):
    """A PersistentVolumeClaim, mounted by the kubelet at the volume's path."""

    type: Literal["existingClaim"] = "existingClaim"
    claim: str


class StoreSource(_Strict):
    """A bucket, mounted by the sidecar.

    Attributes:
        url: the bucket as the admin wrote it, without credentials.
        bucket: bucket (S3, GCS) or container (Azure).
        prefix: what the mount's root is below the bucket: empty, or ending in ``/``.
        account: Azure's storage account from the URL.
        endpoint_suffix: Azure's domain behind the account, such as ``blob.core.windows.net``.
        secret: name of the secret; None means ambient identity.
        secret_key: key inside the secret.
        anonymous: requests are not signed.
    """

    type: Literal["store"] = "store"
    store: StoreName
    url: str
    bucket: str
    prefix: str = ""
    account: str | None = None
    endpoint_suffix: str | None = None
    secret: str | None = None
    secret_key: str | None = None
    anonymous: bool = False


Source = Annotated[HostPathSource | ClaimSource | StoreSource, Field(discriminator="type")]


class Volume(_Strict):
    """One selected volume.

    Attributes:
        path: where the experiment finds it.
        mountpoint: where the sidecar mounts it (buckets only); the same as ``path``
            except in a pod that shows a bucket at a ``mountPath`` through a sub-path.
    """

    name: str
    kind: Kind
    path: str
    read_only: bool = False
    source: Source
    mountpoint: str | None = None

    @property
    def is_bucket(self) -> bool:
        """Whether the sidecar mounts it (and not the kubelet)."""
        return isinstance(self.source, StoreSource)


class Roots(_Strict):
    """Where things are in the sidecar's own file system.

    Attributes:
        cache: the folder of the disk cache, when it shall not be a part of ``state``: a
            hostPath that several pods share, say. Every sidecar that uses it must be
            trusted with what the others read.
    """

    shared: str = SHARED_ROOT
    secrets: str = SECRETS_ROOT
    state: str = STATE_ROOT
    cache: str | None = None
    termination_message: str = TERMINATION_MESSAGE


class Http(_Strict):
    """The one port for metrics, probes and status. Port 0 picks a free one (tests)."""

    host: str = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus come from outside the pod
    port: int = Field(default=HTTP_PORT, ge=0, le=65535)


class Access(_Strict):
    """Who owns what is in a bucket and does not say so itself, and with which permission bits.

    The run's outputs directory is made so, on every kind of volume.
    """

    uid: int = Field(default=0, ge=0)
    gid: int = Field(default=0, ge=0)
    file_mode: int = Field(default=0o644, ge=0, le=0o7777)
    dir_mode: int = Field(default=0o755, ge=0, le=0o7777)


ANYBODY: Final = Access(file_mode=0o666, dir_mode=0o777)
"""Where nobody knows whom the experiment will run as: an image with a user of its own must be
able to save, and a bucket's content is seen by nobody outside the pod."""


class Times(_Strict):
    """Times in seconds.

    Attributes:
        ready_timeout_s: deadline for everything before ready.
        retry_budget_s: how long an outage is waited out before EIO.
        metadata_read_only_s, metadata_writable_s: lifetime of names and attributes.
        sync_interval_s: how often long-open dirty files are sent to the store.
        grace_s: what the sidecar has of the pod's terminationGracePeriodSeconds.
        grace_margin_s: what of it is kept for unmounting and leaving.
    """

    ready_timeout_s: float = Field(default=60.0, gt=0)
    retry_budget_s: float = Field(default=30.0, ge=0)
    metadata_read_only_s: float = Field(default=60.0, ge=0)
    metadata_writable_s: float = Field(default=1.0, ge=0)
    sync_interval_s: float = Field(default=60.0, gt=0)
    grace_s: float = Field(default=60.0, gt=0)
    grace_margin_s: float = Field(default=5.0, ge=0)


class Sizes(_Strict):
    """Budgets in bytes, for each bucket mount.

    Attributes:
        memory_bytes: blocks in memory, read ahead included; None: from the container's limit.
        cache_bytes: blocks on disk; 0 turns the disk cache off; None: from the room on the disk.
        spool_bytes: what was written and is not in the store yet; ENOSPC beyond it.
        part_bytes: part of an upload and of a read ahead.
    """

    memory_bytes: int | None = Field(default=None, ge=16 * MIB)
    cache_bytes: int | None = Field(default=0, ge=0)
    spool_bytes: int = Field(default=10 * GIB, ge=0)
    part_bytes: int = Field(default=8 * MIB, ge=5 * MIB)


class PersistenceSpec(_Strict):
    """Everything that one run mounts, and how.

    Attributes:
        run: path of the run below the outputs volume, such as ``user/project/experiments/1``.
        outputs_path: the run's outputs directory, created before ready.
        volumes: data volumes in the run's order, then the outputs volume.
        environment: the variables of the experiment container.
        transport: ``libfuse`` where the kernel's own protocol is not wanted.
        healing: how a mount goes on when its worker dies: ``resend`` hands it to the next
            worker unseen (Linux 6.9, kernel transport), and falls back to ``remount``.
    """

    version: Literal[1] = SPEC_VERSION
    run: str = ""
    volumes: tuple[Volume, ...] = ()
    outputs_path: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    roots: Roots = Roots()
    http: Http = Http()
    access: Access = Access()
    times: Times = Times()
    sizes: Sizes = Sizes()
    transport: TransportName = "kernel"
    healing: Healing = "resend"

    @property
    def buckets(self) -> tuple[Volume, ...]:
        """The volumes that the sidecar mounts."""
        return tuple(volume for volume in self.volumes if volume.is_bucket)

    def to_json(self) -> str:
        """The spec as JSON, indented, defaults included."""
        return self.model_dump_json(indent=2)


def load_spec(text: str, where: str) -> PersistenceSpec:
    """Parse a spec.

    Args:
        text: the JSON.
        where: how messages name its origin, such as the file.

    Raises:
        SpecInvalid: naming the path inside the document and the nearest valid key.
    """
    try:
        return PersistenceSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SpecInvalid(
            f"{where}: {describe_validation_error(first, PersistenceSpec)}",
            "make it with `sidecar resolve`",
        ) from None


def describe_validation_error(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One clause for one pydantic error: the path, what is wrong, the nearest valid key."""
    location = [str(part) for part in error["loc"]]
    path = ".".join(location) or "the document"
    if error["type"] == "extra_forbidden":
        known = sorted(_known_keys(model))
        return f"unknown key `{path}`{nearest(location[-1], known)}"
    if error["type"] == "missing":
        return f"`{path}` is missing"
    return f"`{path}`: {error['msg'].lower()}"


def nearest(word: str, known: list[str]) -> str:
    """`` (did you mean `x`?)``, or an empty string where nothing is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean `{match[0]}`?)" if match else ""


def _known_keys(model: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    pending: list[Any] = [model]
    seen: set[Any] = set()
    while pending:
        item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        if isinstance(item, type) and issubclass(item, BaseModel):
            for name, info in item.model_fields.items():
                keys.add(info.alias or name)
                pending.append(info.annotation)
        else:
            pending.extend(getattr(item, "__args__", ()))
    return keys
