"""Parsing of bucket URLs; errors name the place and never contain credentials."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.contract.spec import StoreName
from sidecar.control.catalogue.bucket_url import AZURE_CLOUDS, BucketUrl, parse_bucket_url
from sidecar.errors import BucketUrlInvalid, ConfigError, SchemeMismatch

BLOB = "blob.core.windows.net"


@pytest.mark.parametrize(
    ("store", "url", "parts"),
    [
        ("s3", "s3://data-bucket", BucketUrl("data-bucket")),
        ("s3", "s3://data-bucket/", BucketUrl("data-bucket")),
        ("s3", "s3://b.u-c/p/q", BucketUrl("b.u-c", "p/q/")),
        ("s3", "s3://Old_Bucket/p/q/", BucketUrl("Old_Bucket", "p/q/")),
        ("s3", "s3://bucket/a b/%20/Ü", BucketUrl("bucket", "a b/%20/Ü/")),
        ("gcs", "gs://data_bucket/p/", BucketUrl("data_bucket", "p/")),
        (
            "azure",
            f"wasbs://data-container@account.{BLOB}/",
            BucketUrl("data-container", "", "account", BLOB),
        ),
        ("azure", f"wasb://c0c@a1b.{BLOB}/x/y/", BucketUrl("c0c", "x/y/", "a1b", BLOB)),
        ("azure", f"wasbs://$web@account.{BLOB}", BucketUrl("$web", "", "account", BLOB)),
        (
            "azure",
            "abfss://ccc@account.dfs.core.windows.net/p",
            BucketUrl("ccc", "p/", "account", BLOB),
        ),
        (
            "azure",
            "wasbs://ccc@account.blob.core.chinacloudapi.cn/",
            BucketUrl("ccc", "", "account", "blob.core.chinacloudapi.cn"),
        ),
        (
            "azure",
            "wasbs://ccc@account.blob.core.usgovcloudapi.net/",
            BucketUrl("ccc", "", "account", "blob.core.usgovcloudapi.net"),
        ),
    ],
)
def test_taken_apart(store: StoreName, url: str, parts: BucketUrl) -> None:
    assert parse_bucket_url(store, url, "here") == parts


@pytest.mark.parametrize(
    ("store", "url", "error", "problem"),
    [
        ("s3", "gs://bucket", SchemeMismatch, "`gs://` does not belong to `store: s3`"),
        ("gcs", "s3://bucket", SchemeMismatch, "`s3://` does not belong to `store: gcs`"),
        ("azure", "https://a.blob.core.windows.net/c", SchemeMismatch, "`https://` does not"),
        ("s3", "bucket", BucketUrlInvalid, "not a URL"),
        ("s3", "", BucketUrlInvalid, "not a URL"),
        ("s3", "s3://", BucketUrlInvalid, "`` cannot be a bucket's name"),
        ("s3", "s3://ab", BucketUrlInvalid, "`ab` cannot be a bucket's name"),
        ("s3", "s3://a..b", BucketUrlInvalid, "`a..b` cannot be a bucket's name"),
        ("s3", "s3://bu cket", BucketUrlInvalid, "`bu cket` cannot be a bucket's name"),
        ("s3", "s3://10.0.0.1/x", BucketUrlInvalid, "`10.0.0.1` cannot be a bucket's name"),
        ("gcs", "gs://Bucket", BucketUrlInvalid, "`Bucket` cannot be a bucket's name"),
        ("s3", "s3://bucket/a//b", BucketUrlInvalid, "its prefix has an empty part (`//`)"),
        ("s3", "s3://bucket//", BucketUrlInvalid, "its prefix has an empty part (`//`)"),
        ("s3", "s3://bucket/../x", BucketUrlInvalid, "its prefix has a part `.` or `..`"),
        ("s3", "s3://bucket/" + "x" * 600, BucketUrlInvalid, "its prefix is longer than 512 bytes"),
        ("s3", "s3://buc\tket", BucketUrlInvalid, "it has a character that cannot be printed"),
        ("s3", "s3://AKIACANARY:CANARY@bucket", BucketUrlInvalid, "a login, port or endpoint"),
        ("s3", "s3://bucket/p?X-Amz-Signature=CANARY", BucketUrlInvalid, "a query or fragment"),
        ("azure", f"wasbs://container.{BLOB}/", BucketUrlInvalid, "it lacks `@`"),
        ("azure", f"wasbs://ccc@account.{BLOB}.evil/", BucketUrlInvalid, "its host must be"),
        ("azure", "wasbs://ccc@account.blob.core.windows.net.cn", BucketUrlInvalid, "its host"),
        ("azure", "wasbs://ccc@account.file.core.windows.net", BucketUrlInvalid, "its host must"),
        ("azure", f"wasbs://ccc@a.b.{BLOB}", BucketUrlInvalid, "its host must be"),
        ("azure", f"wasbs://ccc@a-b.{BLOB}", BucketUrlInvalid, "`a-b` cannot be a storage"),
        ("azure", f"wasbs://c--c@acc.{BLOB}", BucketUrlInvalid, "`c--c` cannot be a container's"),
        ("azure", f"wasbs://ccc@acc.{BLOB}/?sig=CANARY", BucketUrlInvalid, "a query or fragment"),
    ],
)
def test_refused(store: StoreName, url: str, error: type[ConfigError], problem: str) -> None:
    with pytest.raises(error) as caught:
        parse_bucket_url(store, url, "f: `x.bucket`")
    assert caught.value.message.startswith(f"f: `x.bucket`: {problem}")
    assert "CANARY" not in caught.value.message


names = st.from_regex(r"[a-z0-9]([a-z0-9]-?){1,20}[a-z0-9]", fullmatch=True)
parts = st.text(
    st.characters(
        exclude_characters="/?#",
        exclude_categories=["Cc", "Cs", "Cf", "Co", "Cn", "Zs", "Zl", "Zp"],
    ),
    min_size=1,
    max_size=10,
).filter(lambda part: part not in (".", ".."))


@settings(deadline=None)
@given(
    st.sampled_from(["s3", "gcs", "azure"]),
    names,
    st.lists(parts, max_size=4),
    st.booleans(),
    st.sampled_from(AZURE_CLOUDS),
)
def test_round_trip(
    store: StoreName, name: str, prefix: list[str], slash: bool, cloud: str
) -> None:
    base = {
        "s3": f"s3://{name}",
        "gcs": f"gs://{name}",
        "azure": f"wasbs://{name}@acc.blob.{cloud}",
    }
    url = "/".join([base[store], *prefix]) + ("/" if slash else "")
    got = parse_bucket_url(store, url, "here")
    assert got.bucket == name
    assert got.prefix == "".join(f"{part}/" for part in prefix)
    if store == "azure":
        assert (got.account, got.endpoint_suffix) == ("acc", f"blob.{cloud}")
