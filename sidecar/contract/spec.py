"""PersistenceSpec: the contract between the control half and the mounter half.

Every default of the product is here. Standard library only, because process 1 loads this;
:mod:`sidecar.contract.spec_document` checks what people write.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, Self
from urllib.parse import quote

from sidecar.contract.options import MOST_BYTES, Checked, Options, Times
from sidecar.units import MIB

SPEC_VERSION: Final = 1

SHARED_ROOT = "/mnt/persistence"
SECRETS_ROOT = "/var/run/sidecar/secrets"
STATE_ROOT = "/var/lib/sidecar"
TERMINATION_MESSAGE = "/dev/termination-log"
SPEC_FILE = "/etc/sidecar/spec.json"
KUBELET_PODS = "/var/lib/kubelet/pods"
NODE_CACHE = "/var/cache/sidecar/node"
MEMORY_CACHE = "/var/cache/sidecar/memory"
HTTP_PORT = 9464

DATA_PATHS_VARIABLE = "POLYAXON_RUN_DATA_PATHS"
OUTPUTS_PATH_VARIABLE = "POLYAXON_RUN_OUTPUTS_PATH"

Kind = Literal["data", "outputs"]
StoreName = Literal["s3", "gcs", "azure"]
CacheScope = Literal["namespace", "login"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPathSource(Checked):
    """A directory of the node, mounted by the kubelet at the volume's path."""

    type: Literal["hostPath"] = "hostPath"
    host_path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimSource(Checked):
    """A PersistentVolumeClaim, mounted by the kubelet at the volume's path."""

    type: Literal["existingClaim"] = "existingClaim"
    claim: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaBundle(Checked):
    """Authorities in a ConfigMap or a Secret of the pod's namespace.

    Attributes:
        key: its value is certificates in PEM.
    """

    kind: Literal["configMap", "secret"]
    name: str
    key: str

    @classmethod
    def parse(cls, text: str) -> CaBundle | None:
        """``KIND/NAME/KEY``; None for anything else."""
        parts = text.split("/")
        if len(parts) != 3 or parts[0] not in ("configMap", "secret") or not all(parts):
            return None
        kind, name, key = parts
        return cls(kind="secret" if kind == "secret" else "configMap", name=name, key=key)

    @property
    def folder(self) -> str:
        """The folder below the secrets root."""
        return self.name if self.kind == "secret" else config_map_folder(self.name)

    def path(self, secrets_root: str) -> str:
        """The file in the sidecar's file system."""
        return f"{secrets_root}/{self.folder}/{self.key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSource(Checked):
    """A bucket, mounted by the sidecar.

    Attributes:
        url: the bucket as the admin wrote it, without credentials.
        bucket: bucket (S3, GCS) or container (Azure).
        prefix: the prefix of the keys below the mount's root: empty, or ending in ``/``.
        account: Azure's storage account from the URL.
        endpoint_suffix: Azure's domain behind the account, such as ``blob.core.windows.net``.
        secret: name of the secret; None means ambient identity.
        secret_key: key inside the secret.
        anonymous: requests are not signed.
        proxy: ``http://HOST:PORT`` without a login, through which the store is reached; None: as
            the secret or the environment says.
        no_proxy: hosts reached without it: names, domains, addresses and networks with commas.
        ca_bundle: authorities besides the public ones.
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
    proxy: str | None = None
    no_proxy: str | None = None
    ca_bundle: CaBundle | None = None


Source = HostPathSource | ClaimSource | StoreSource


def volume_label(kind: str, name: str) -> str:
    """How logs, metrics and messages name a volume."""
    return f"{kind}/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Checked):
    """One selected volume.

    Attributes:
        path: where the experiment finds it.
        mountpoint: where the sidecar mounts it (buckets only); the same as ``path``
            except in a pod that shows a bucket at a ``mountPath`` through a sub-path.
        near: a bucket near the pods, in which blocks of this one are kept (buckets only).
        options: how a bucket is served.
        origins: for each option that somebody set: who did.
    """

    name: str
    kind: Kind
    path: str
    read_only: bool = False
    source: Source = field(metadata={"discriminator": "type"})
    mountpoint: str | None = None
    near: StoreSource | None = None
    options: Options = Options()
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How logs, metrics and messages name the volume: ``kind/name``."""
        return volume_label(self.kind, self.name)

    @property
    def identity(self) -> str:
        """How the volume's files in the state directory are named."""
        return f"{self.kind}-{quote(self.name, safe='')}"

    @property
    def mounted_at(self) -> str:
        """Where the volume is in the sidecar's own file system."""
        return (self.mountpoint if self.is_bucket else None) or self.path

    @property
    def stores(self) -> tuple[StoreSource, ...]:
        """The buckets that the sidecar talks to for the volume."""
        own = (self.source,) if isinstance(self.source, StoreSource) else ()
        return (*own, *((self.near,) if self.near is not None else ()))

    @property
    def is_sub_path(self) -> bool:
        """Whether the kubelet shows it at ``path``, as a sub-path of the shared directory."""
        return self.is_bucket and self.mounted_at != self.path

    @property
    def must_hold_data(self) -> bool:
        """Whether it is a directory of the node that experiments only read.

        If it is empty, that is an error: a container runtime makes a missing hostPath.
        """
        return self.read_only and isinstance(self.source, HostPathSource)

    @property
    def is_bucket(self) -> bool:
        """Whether the sidecar mounts it (and not the kubelet)."""
        return isinstance(self.source, StoreSource)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots(Checked):
    """Where things are in the sidecar's own file system.

    Attributes:
        node_cache: folder of the cache that the node's pods share, if volumes ask for it.
        memory_cache: folder of caches in memory: a tmpfs.
    """

    shared: str = SHARED_ROOT
    secrets: str = SECRETS_ROOT
    state: str = STATE_ROOT
    node_cache: str = NODE_CACHE
    memory_cache: str = MEMORY_CACHE
    termination_message: str = TERMINATION_MESSAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Http(Checked):
    """The one port for metrics, probes and status. 0 picks a free one (tests); None: no port."""

    host: str = "::"  # the kubelet and Prometheus come from outside the pod, by either family
    port: int | None = field(default=HTTP_PORT, metadata={"ge": 0, "le": 65535})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access(Checked):
    """Owner and permission bits of everything in a bucket, unless an object has its own.

    The run's outputs directory gets them on every kind of volume.
    """

    uid: int = field(default=0, metadata={"ge": 0, "le": 2**32 - 1})
    gid: int = field(default=0, metadata={"ge": 0, "le": 2**32 - 1})
    file_mode: int = field(default=0o644, metadata={"ge": 0, "le": 0o7777})
    dir_mode: int = field(default=0o755, metadata={"ge": 0, "le": 0o7777})


ANYBODY: Final = Access(file_mode=0o666, dir_mode=0o777)
"""For a pod that does not say as which user the experiment runs. A user that only the image names
must be able to save, and nothing outside the pod sees the mount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCache(Checked):
    """The cache that the pods of a node share.

    Attributes:
        host_path: its folder on the node; None: :attr:`Roots.node_cache` on this machine.
        size_bytes: budget of all pods together; None: by the room on the disk.
        scope: who shares it: pods of one namespace, or of those only pods with one login.
    """

    host_path: str | None = None
    size_bytes: int | None = field(default=None, metadata={"ge": 64 * MIB, "le": MOST_BYTES})
    scope: CacheScope = "namespace"


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistenceSpec(Checked):
    """Everything that one run mounts, and how.

    Attributes:
        run: path of the run below the outputs volume, such as ``user/project/experiments/1``.
        outputs_path: the run's outputs directory, created before ready.
        volumes: data volumes in the run's order, then the outputs volume.
        environment: the variables of the experiment container.
    """

    version: Literal[1] = SPEC_VERSION
    run: str = ""
    volumes: tuple[Volume, ...] = ()
    outputs_path: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    roots: Roots = Roots()
    http: Http = Http()
    access: Access = Access()
    times: Times = Times()
    node_cache: NodeCache = NodeCache()

    @property
    def buckets(self) -> tuple[Volume, ...]:
        """The volumes that the sidecar mounts."""
        return tuple(volume for volume in self.volumes if volume.is_bucket)

    @property
    def memory_cache_bytes(self) -> int:
        """How much of the container's memory limit caches in memory take."""
        caches = [volume.options for volume in self.buckets if volume.options.cache == "memory"]
        return sum(options.cache_bytes or 0 for options in caches)

    def to_json(self, indent: int | None = 2) -> str:
        """The spec as JSON, defaults included. ``indent``: None for one line without spaces."""
        separators = (",", ":") if indent is None else None
        return json.dumps(asdict(self), ensure_ascii=False, indent=indent, separators=separators)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec that :meth:`to_json` gave. Nothing is checked, so not for what people write."""
        return cls.from_document(json.loads(text))

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The spec of a document that is known to be valid, in JSON's types."""
        built = {key: part(**document[key]) for key, part in _PARTS.items()}
        volumes = tuple(
            Volume(
                **{
                    **volume,
                    "source": _source(volume["source"]),
                    "near": None if volume["near"] is None else _source(volume["near"]),
                    "options": _options(volume["options"]),
                }
            )
            for volume in document["volumes"]
        )
        return cls(**{**document, **built, "volumes": volumes})


def config_map_folder(name: str) -> str:
    """The folder of a ConfigMap below the secrets root. No name of Kubernetes has a ``_``."""
    return f"configmap_{name}"


def _options(document: dict[str, Any]) -> Options:
    """The options of a document: JSON's lists become tuples."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
    }
    return Options(**values)


def _source(document: dict[str, Any]) -> Source:
    if bundle := document.get("ca_bundle"):
        document = {**document, "ca_bundle": CaBundle(**bundle)}
    return _SOURCES[document["type"]](**document)


_PARTS: Final = {
    "roots": Roots,
    "http": Http,
    "access": Access,
    "times": Times,
    "node_cache": NodeCache,
}
_SOURCES: Final[dict[str, type[Source]]] = {
    "hostPath": HostPathSource,
    "existingClaim": ClaimSource,
    "store": StoreSource,
}
