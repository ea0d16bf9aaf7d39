"""The catalogue: the data and outputs volumes that an admin declares.

It is written as Polyaxon's Helm values (``persistence:`` at the top) or as the bare
``data``/``outputs`` mapping, in YAML or JSON. The keys of an entry are Polyaxon 0.6's
(``existingClaim, mountPath, hostPath, store, bucket, secret, secretKey, readOnly``) and
more: ``anonymous: true`` reads a public bucket without a login (an entry without a secret uses
the pod's ambient identity); ``proxy``, ``noProxy`` and ``caBundle`` say how a bucket's store is
reached; ``near`` where blocks of it are kept near the pods; ``options`` how it is served.
``mountSidecar`` beside the volumes holds for the whole cluster (:mod:`.cluster_settings`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from sidecar.contract.paths import check_absolute_path
from sidecar.contract.spec import (
    CaBundle,
    ClaimSource,
    HostPathSource,
    Kind,
    Source,
    StoreName,
    StoreSource,
    volume_label,
)
from sidecar.contract.spec_document import describe, nearest
from sidecar.contract.spec_rules import proxy_problem
from sidecar.control.catalogue.bucket_url import parse_bucket_url
from sidecar.control.catalogue.cluster_settings import (
    KEY,
    ClusterSettings,
    parse_cluster_settings,
)
from sidecar.control.catalogue.option_rules import Values, parse_options
from sidecar.control.catalogue.yaml_document import YamlValue, parse_documents
from sidecar.errors import (
    BucketMissing,
    CatalogueInvalid,
    MountPathInvalid,
    SecretIncomplete,
    SourceConflict,
    SourceMissing,
    UnknownKey,
)

KINDS: tuple[Kind, ...] = ("data", "outputs")

# Other volumes of Polyaxon's chart, which are not a run's.
_CHART_KEYS = ("logs", "repos", "upload")

# kubernetes.io "Object Names and IDs": DNS subdomain names.
_KUBERNETES_NAME = re.compile(
    r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
)
# There "DNS label names": metrics, directories and Kubernetes objects are named by it.
_VOLUME_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# kubernetes.io "Secrets": keys of ``data``.
_SECRET_KEY = re.compile(r"(?!\.\.)(?!\.$)[-._A-Za-z0-9]{1,253}")


@dataclass(frozen=True, slots=True)
class DeclaredVolume:
    """One volume of the catalogue.

    Attributes:
        mount_path: where the experiment finds it; None for a bucket without ``mountPath``.
        near: a bucket near the pods, for blocks of this one.
        options: those that the admin set for a bucket.
    """

    name: str
    kind: Kind
    mount_path: str | None
    read_only: bool
    source: Source
    near: StoreSource | None = None
    options: Values = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How messages name the volume: ``kind/name``."""
        return volume_label(self.kind, self.name)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All declared volumes, in declared order, and what is set for all of them."""

    data: tuple[DeclaredVolume, ...] = ()
    outputs: tuple[DeclaredVolume, ...] = ()
    cluster: ClusterSettings = ClusterSettings()


def parse_catalogue(text: str, where: str) -> Catalogue:
    """Parse a catalogue.

    Args:
        text: YAML or JSON.
        where: how messages name its origin, such as the file.

    Raises:
        ConfigError: naming the path inside the document, such as
            ``persistence.data.data-s3.bukcet``, and the nearest valid key.
    """
    documents = parse_documents(text, where, CatalogueInvalid)
    if len(documents) != 1:
        found = f"{len(documents)} documents" if documents else "nothing"
        raise CatalogueInvalid(f"{where}: holds {found} where one document belongs")
    at, section = _section(documents[0], where)
    cluster = _mapping(documents[0], _Location(where)).get(KEY)
    return Catalogue(
        data=_volumes("data", section.get("data"), at),
        outputs=_volumes("outputs", section.get("outputs"), at),
        cluster=parse_cluster_settings(cluster, f"{where}: {KEY}"),
    )


@dataclass(frozen=True, slots=True)
class _Location:
    """A place inside the document: the keys that lead to it."""

    where: str
    keys: tuple[str, ...] = ()

    def __truediv__(self, key: str) -> _Location:
        return _Location(self.where, (*self.keys, key))

    def __str__(self) -> str:
        return f"{self.where}: `{self.path}`" if self.keys else self.where

    @property
    def path(self) -> str:
        return ".".join(self.keys)


def _section(document: YamlValue, where: str) -> tuple[_Location, dict[str, YamlValue]]:
    """The mapping with ``data`` and ``outputs``, and its location."""
    at = _Location(where)
    top = _mapping(document, at)
    if "persistence" in top:
        at /= "persistence"
        section = _mapping(top["persistence"], at)
        known: tuple[str, ...] = (*KINDS, *_CHART_KEYS)
    else:
        section = top
        known = (*KINDS, "persistence", KEY)
        if not section:
            raise CatalogueInvalid(
                f"{at}: is empty",
                "declare volumes under `persistence.data` and `persistence.outputs`",
            )
    for key in section:
        if key not in known:
            raise UnknownKey(f"{where}: unknown key `{(at / key).path}`{nearest(key, list(known))}")
    return at, section


def _mapping(value: YamlValue, at: _Location) -> dict[str, YamlValue]:
    if value is None and at.keys:
        return {}  # Helm values often have `data:` or `data: null` for none
    if not isinstance(value, dict):
        raise CatalogueInvalid(f"{at}: must be a mapping")
    return value


def _volumes(kind: Kind, section: YamlValue, at: _Location) -> tuple[DeclaredVolume, ...]:
    at /= kind
    volumes = []
    for name, value in _mapping(section, at).items():
        if not _VOLUME_NAME.fullmatch(name):
            raise _no_volume_name(name, at)
        if not isinstance(value, dict):
            raise CatalogueInvalid(f"{at / name}: must be a mapping")
        volumes.append(_volume(kind, name, value, at / name))
    return tuple(volumes)


def _no_volume_name(name: str, at: _Location) -> CatalogueInvalid:
    better = re.sub(r"[^a-z0-9]+", "-", name.lower())[:63].strip("-")
    return CatalogueInvalid(
        f"{at / name}: a volume's name has at most 63 of a-z, 0-9 and `-`, not at its ends",
        f"`{better}`, perhaps" if better else "name it otherwise",
    )


_STRICT: Final = ConfigDict(extra="forbid", frozen=True, strict=True, alias_generator=to_camel)


class _CaBundle(BaseModel):
    """Where certificates of authorities are: in a ConfigMap or in a Secret."""

    model_config = _STRICT

    config_map: str | None = None
    secret: str | None = None
    key: str


class _Bucket(BaseModel):
    """A bucket as written: only keys and types are checked. Null is the same as absent."""

    model_config = _STRICT

    store: StoreName | None = None
    bucket: str | None = None
    secret: str | None = None
    secret_key: str | None = None
    anonymous: bool | None = None


class _Entry(_Bucket):
    """An entry as written."""

    mount_path: str | None = None
    host_path: str | None = None
    existing_claim: str | None = None
    read_only: bool | None = None
    proxy: str | None = None
    no_proxy: str | None = None
    ca_bundle: _CaBundle | None = None
    near: _Bucket | None = None
    options: dict[str, Any] | None = None


_ENTRY: Final = TypeAdapter(_Entry)


def _volume(kind: Kind, name: str, value: dict[str, YamlValue], at: _Location) -> DeclaredVolume:
    entry = _entry(value, at)
    source = _source(entry, at)
    if entry.mount_path is not None:
        check_absolute_path(entry.mount_path, str(at / "mountPath"), MountPathInvalid)
    elif not isinstance(source, StoreSource):
        raise MountPathInvalid(
            f"{at}: lacks `mountPath`", f"`{source.type}` needs one; only a bucket has a default"
        )
    return DeclaredVolume(
        name=name,
        kind=kind,
        mount_path=entry.mount_path,
        read_only=bool(entry.read_only),
        source=source,
        near=_near(entry.near, source, at / "near"),
        options=parse_options(entry.options, f"{at.where}: {(at / 'options').path}", of_pod=False),
    )


def _entry(value: dict[str, YamlValue], at: _Location) -> _Entry:
    try:
        return _ENTRY.validate_python(value)
    except ValidationError as invalid:
        is_unknown, problem = describe(invalid, _ENTRY, at.keys)
        raise (UnknownKey if is_unknown else CatalogueInvalid)(f"{at.where}: {problem}") from None


def _source(entry: _Entry, at: _Location) -> Source:
    named = {
        "hostPath": entry.host_path,
        "existingClaim": entry.existing_claim,
        "store": entry.store,
    }
    given = [key for key, value in named.items() if value is not None]
    if len(given) > 1:
        raise SourceConflict(f"{at}: has {_listed(given)}", f"keep one of {_listed(list(named))}")
    if not given:
        raise SourceMissing(
            f"{at}: says nowhere what to mount", f"add one of {_listed(list(named))}"
        )
    if entry.store is not None:
        return _store(entry, entry.store, at)
    _refuse_store_keys(entry, given[0], at)
    if entry.host_path is not None:
        path = check_absolute_path(entry.host_path, str(at / "hostPath"), CatalogueInvalid)
        return HostPathSource(host_path=path)
    claim = _matching(
        _KUBERNETES_NAME, str(entry.existing_claim), at / "existingClaim", "a claim's name"
    )
    return ClaimSource(claim=claim)


def _refuse_store_keys(entry: _Entry, given: str, at: _Location) -> None:
    for name in (
        "bucket", "secret", "secret_key", "anonymous", "proxy", "no_proxy", "ca_bundle", "near",
        "options",
    ):  # fmt: skip
        if getattr(entry, name) is not None:
            raise CatalogueInvalid(f"{at / to_camel(name)}: belongs to `store`, not to `{given}`")


def _store(entry: _Entry, store: StoreName, at: _Location) -> StoreSource:
    if entry.proxy is not None and (problem := proxy_problem(entry.proxy)):
        raise CatalogueInvalid(f"{at / 'proxy'}: {problem}")
    if entry.no_proxy is not None and not entry.no_proxy.isprintable():
        raise CatalogueInvalid(f"{at / 'noProxy'}: must be one line")
    return replace(
        _bucket(entry, store, at),
        proxy=entry.proxy,
        no_proxy=entry.no_proxy,
        ca_bundle=None if entry.ca_bundle is None else _ca_bundle(entry.ca_bundle, at / "caBundle"),
    )


def _near(entry: _Bucket | None, source: Source, at: _Location) -> StoreSource | None:
    """The near bucket. It is reached by the same proxy and authorities as the volume's own."""
    if entry is None or not isinstance(source, StoreSource):
        return None
    if entry.store is None:
        raise SourceMissing(f"{at}: has no `store`", "add `store`, `bucket`, and the login")
    near = _bucket(entry, entry.store, at)
    if _inside(near, source):
        raise SourceConflict(
            f"{at}: lies in the volume's own bucket, whose files it would be among",
            "name another bucket",
        )
    return near


def _inside(near: StoreSource, source: StoreSource) -> bool:
    """Whether one's keys are among the other's, as far as their names tell.

    Buckets of one name behind different endpoints, which are in secrets, are different buckets.
    """

    def bucket(one: StoreSource) -> tuple[str | None, ...]:
        return one.store, one.bucket, one.account, one.endpoint_suffix, one.secret, one.secret_key

    return bucket(near) == bucket(source) and near.prefix.startswith(source.prefix)


def _bucket(entry: _Bucket, store: StoreName, at: _Location) -> StoreSource:
    if entry.bucket is None:
        raise BucketMissing(f"{at}: has `store` without `bucket`", "add the bucket's URL")
    if (entry.secret is None) != (entry.secret_key is None):
        present, absent = (
            ("secretKey", "secret") if entry.secret is None else ("secret", "secretKey")
        )
        raise SecretIncomplete(
            f"{at}: has `{present}` without `{absent}`",
            "give both, or neither for ambient identity",
        )
    url = parse_bucket_url(store, entry.bucket, str(at / "bucket"))
    if entry.secret is not None and entry.secret_key is not None:
        if entry.anonymous:
            raise SecretIncomplete(
                f"{at}: has both `secret` and `anonymous: true`", "keep one of them"
            )
        _matching(_KUBERNETES_NAME, entry.secret, at / "secret", "a secret's name")
        _matching(_SECRET_KEY, entry.secret_key, at / "secretKey", "a key of a secret")
    return StoreSource(
        store=store,
        url=entry.bucket,
        bucket=url.bucket,
        prefix=url.prefix,
        account=url.account,
        endpoint_suffix=url.endpoint_suffix,
        secret=entry.secret,
        secret_key=entry.secret_key,
        anonymous=bool(entry.anonymous),
    )


def _ca_bundle(entry: _CaBundle, at: _Location) -> CaBundle:
    if (entry.config_map is None) == (entry.secret is None):
        raise CatalogueInvalid(f"{at}: needs one of `configMap` and `secret`, and `key`")
    kind: Literal["configMap", "secret"] = "secret" if entry.config_map is None else "configMap"
    name = _matching(_KUBERNETES_NAME, str(entry.config_map or entry.secret), at / kind, "its name")
    return CaBundle(
        kind=kind, name=name, key=_matching(_SECRET_KEY, entry.key, at / "key", "a key of it")
    )


def _matching(pattern: re.Pattern[str], value: str, at: _Location, what: str) -> str:
    if not pattern.fullmatch(value):
        raise CatalogueInvalid(f"{at}: cannot be {what} in Kubernetes")
    return value


def _listed(keys: list[str]) -> str:
    quoted = [f"`{key}`" for key in keys]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}" if len(quoted) > 1 else quoted[0]
