"""Answers with an instruction: another region, a redirect, an archived object."""

from __future__ import annotations

import errno
import json
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.errors import ObjectArchived, RegionMismatch, SidecarError, to_errno
from sidecar.mounter.store.interface import Store
from sidecar.mounter.store.store_errors import Call as StoreCall
from sidecar.mounter.store.store_errors import ErrorResponse, StoreErrors
from tests.support.clouds import CountingObserver, S3Cloud
from tests.support.strict_server import StrictS3Server

REGION = "eu-central-1"


@pytest.fixture
def bucket(strict_s3_server: StrictS3Server) -> S3Cloud:
    """A bucket with the object ``file``."""
    name = f"elsewhere-{uuid.uuid4().hex[:12]}"
    strict_s3_server.create_bucket(name)
    cloud = S3Cloud(strict_s3_server, name)
    cloud.write("file", b"content")
    return cloud


Call = Callable[[Store], object]
CALLS: dict[str, Call] = {
    "list": lambda store: store.list_page(""),
    "probe": lambda store: store.probe(),
    "head": lambda store: store.head("file"),
    "put": lambda store: store.put("new", b""),
    "get": lambda store: store.get_range("file", "v", 0, memoryview(bytearray(1))),
}


def error_of(call: Call, cloud: S3Cloud, secrets: Path) -> SidecarError:
    with (
        closing(cloud.open(secrets, retry_budget_s=2.0)) as store,
        pytest.raises(SidecarError) as caught,
    ):
        call(store)
    return caught.value


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_another_region_behind_an_endpoint_is_named_with_what_to_set(
    strict_s3_server: StrictS3Server, bucket: S3Cloud, secrets: Path, call: Call
) -> None:
    bucket.write_secret(secrets)
    strict_s3_server.settings(bucket.bucket, region=REGION)
    error = error_of(call, bucket, secrets)
    assert type(error) is RegionMismatch
    assert error.message == (
        f"S3 bucket `{bucket.bucket}` at 127.0.0.1:{strict_s3_server.port} is in the region "
        f"`{REGION}`, and was asked for in `us-east-1`; set AWS_REGION to `{REGION}` in the "
        "volume's secret"
    )
    assert to_errno(error) == errno.EIO
    right = {**strict_s3_server.credentials(), "AWS_REGION": REGION}
    bucket.write_secret(secrets, json.dumps(right))
    with closing(bucket.open(secrets)) as store:
        assert store.head("file").size_bytes == 7


@pytest.mark.parametrize("status", [301, 307])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_redirect_behind_an_endpoint_says_where_the_bucket_is(
    strict_s3_server: StrictS3Server, bucket: S3Cloud, secrets: Path, call: Call, status: int
) -> None:
    bucket.write_secret(secrets)
    where = {"redirect": status, "redirect_endpoint": "s3.example:9000"}
    strict_s3_server.settings(bucket.bucket, region=REGION, **where)
    error = error_of(call, bucket, secrets)
    assert type(error) is RegionMismatch
    assert f"is in the region `{REGION}`" in error.what
    assert error.hint == f"set AWS_REGION to `{REGION}` in the volume's secret"
    strict_s3_server.settings(bucket.bucket, region="us-east-1", **where)
    error = error_of(call, bucket, secrets)
    assert type(error) is RegionMismatch
    assert "is elsewhere" in error.what
    assert "AWS_ENDPOINT_URL" in error.hint
    if call is not CALLS["head"]:  # whose answer has no body
        assert "at s3.example:9000" in error.what


def test_a_wrong_key_is_still_a_wrong_key(
    strict_s3_server: StrictS3Server, bucket: S3Cloud, secrets: Path
) -> None:
    wrong = {**strict_s3_server.credentials(), "AWS_SECRET_ACCESS_KEY": "wrong"}
    bucket.write_secret(secrets, json.dumps(wrong))
    error = error_of(CALLS["list"], bucket, secrets)
    assert error.code == "SC1043"
    assert "check the keys" in error.hint


@pytest.mark.parametrize("storage_class", ["GLACIER", "DEEP_ARCHIVE"])
def test_an_archived_object_is_named_and_not_asked_for_again(
    strict_s3_server: StrictS3Server, bucket: S3Cloud, secrets: Path, storage_class: str
) -> None:
    bucket.server.client()._execute(  # the minio client has no argument for it
        "PUT", bucket.bucket, "cold", body=b"x", headers={"x-amz-storage-class": storage_class}
    )
    bucket.write_secret(secrets)
    observer = CountingObserver()
    with closing(bucket.open(secrets, observer=observer)) as store:
        cold = store.head("cold")
        with pytest.raises(ObjectArchived) as caught:
            store.get_range("cold", cold.version, 0, memoryview(bytearray(1)))
        with pytest.raises(ObjectArchived):
            store.copy("cold", "copy")
    error = caught.value
    assert error.what == (
        f"`cold` in S3 bucket `{bucket.bucket}` at 127.0.0.1:{strict_s3_server.port} is archived "
        f"(storage class {storage_class})"
    )
    assert error.hint.startswith("restore it first")
    assert to_errno(error) == errno.EACCES
    assert observer.retries == []
    assert observer.failures == [("get", "SC1055"), ("copy", "SC1055")]


def test_azure_s_archive_is_one_too() -> None:
    errors = StoreErrors("Azure", "container", "account.blob.example")
    error = errors.from_response(ErrorResponse(409, "BlobArchived"), StoreCall("get", "cold"))
    assert isinstance(error, ObjectArchived)
    assert error.what.endswith("is archived")
