"""Bucket URLs: `s3://bucket/prefix`, `gs://bucket/prefix`, `wasbs://container@account.host/prefix`.

Text only: whether a bucket exists is checked when it is mounted. Messages never repeat what
follows a `?` or a user part with a `:`, since people paste signed URLs and keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sidecar.contract.paths import prefix_problem
from sidecar.contract.spec import StoreName
from sidecar.errors import BucketUrlInvalid, ConfigError, SchemeMismatch

SCHEMES: dict[StoreName, tuple[str, ...]] = {
    "s3": ("s3",),
    "gcs": ("gs",),
    "azure": ("wasbs", "wasb", "abfss", "abfs"),
}
"""Each store's schemes, the usual one first. All of Azure's mean the Blob endpoint over TLS."""

AZURE_CLOUDS = ("core.windows.net", "core.usgovcloudapi.net", "core.chinacloudapi.cn")
"""The public, US government and China clouds (learn.microsoft.com, "Azure endpoints")."""

# docs.aws.amazon.com "bucketnamingrules"; older buckets have upper case, `_`, up to 255 bytes.
_S3_BUCKET = re.compile(r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
# cloud.google.com/storage/docs/buckets#naming
_GCS_BUCKET = re.compile(r"[a-z0-9](?!.*\.\.)[a-z0-9._-]{1,220}[a-z0-9]")
# learn.microsoft.com "Naming and referencing containers"
_AZURE_CONTAINER = re.compile(r"(?=.{3,63}$)[a-z0-9]+(?:-[a-z0-9]+)*|\$(?:root|web|logs)")
_AZURE_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_IPV4 = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+")


@dataclass(frozen=True, slots=True)
class BucketUrl:
    """A parsed bucket URL.

    Attributes:
        bucket: name of the bucket (S3, GCS) or container (Azure).
        prefix: empty, or ending in ``/``.
        account: Azure's storage account.
        endpoint_suffix: Azure's domain behind the account, such as ``blob.core.windows.net``.
    """

    bucket: str
    prefix: str = ""
    account: str | None = None
    endpoint_suffix: str | None = None


def parse_bucket_url(store: StoreName, url: str, where: str) -> BucketUrl:
    """Parse a bucket URL.

    Args:
        store: the volume's ``store`` in the catalogue.
        url: as the admin wrote it. Nothing is percent-decoded.
        where: how messages name the place, such as ``values.yaml: persistence.data.x.bucket``.

    Raises:
        SchemeMismatch: the scheme is not one of the store's.
        BucketUrlInvalid: anything else is wrong with the URL.
    """
    name = f"CONTAINER@ACCOUNT.blob.{AZURE_CLOUDS[0]}" if store == "azure" else "BUCKET"
    form = f"{SCHEMES[store][0]}://{name}"

    def refuse(problem: str, error: type[ConfigError] = BucketUrlInvalid) -> ConfigError:
        return error(f"{where}: {problem}", f"write it as `{form}` or `{form}/PREFIX`")

    scheme, separator, rest = url.partition("://")
    if not separator:
        raise refuse("not a URL")
    if scheme not in SCHEMES[store]:
        shown = f"`{scheme}://`" if scheme.isalnum() else "its scheme"
        raise refuse(f"{shown} does not belong to `store: {store}`", SchemeMismatch)
    if "?" in rest or "#" in rest:
        raise refuse("a query or fragment cannot be part of it")
    if not rest.isprintable():
        raise refuse("it has a character that cannot be printed")
    authority, _, path = rest.partition("/")
    if ":" in authority or (store != "azure" and "@" in authority):
        raise refuse("a login, port or endpoint cannot be part of it (the secret holds them)")
    prefix = _prefix(path, refuse)
    if store == "azure":
        return _azure(authority, prefix, refuse)
    pattern = _S3_BUCKET if store == "s3" else _GCS_BUCKET
    if not pattern.fullmatch(authority) or _IPV4.fullmatch(authority):
        raise refuse(f"`{authority}` cannot be a bucket's name")
    return BucketUrl(authority, prefix)


def _prefix(path: str, refuse: Callable[[str], ConfigError]) -> str:
    if not path:
        return ""
    prefix = path.removesuffix("/")
    if problem := prefix_problem(prefix):
        raise refuse(f"its prefix {problem}")
    return prefix + "/"


def _azure(authority: str, prefix: str, refuse: Callable[[str], ConfigError]) -> BucketUrl:
    container, at, host = authority.partition("@")
    if not at:
        raise refuse("it lacks `@` between the container and the account's host")
    account, _, domain = host.partition(".")
    # ABFS URLs name the account's Data Lake host. The Blob endpoint serves the same account.
    service, _, cloud = domain.partition(".")
    if service not in ("blob", "dfs") or cloud not in AZURE_CLOUDS:
        known = ", ".join(f"blob.{name}" for name in AZURE_CLOUDS)
        raise refuse(f"its host must be the account followed by one of {known}")
    if not _AZURE_ACCOUNT.fullmatch(account):
        raise refuse(f"`{account}` cannot be a storage account's name")
    if not _AZURE_CONTAINER.fullmatch(container):
        raise refuse(f"`{container}` cannot be a container's name")
    return BucketUrl(container, prefix, account, f"blob.{cloud}")
