"""Buckets: names, regions, policies, requester pays, quotas."""

from __future__ import annotations

import pytest

from tests.servers.raw import Raw
from tests.servers.test_strict_objects import delete_document, delete_many
from tests.support.strict_server import StrictS3Server


def test_a_bucket_that_is_absent(server: StrictS3Server) -> None:
    absent = Raw(server, "no-such-bucket")
    assert absent("GET", "key").refusal == "404 NoSuchBucket"
    assert absent("PUT", "key", b"content").refusal == "404 NoSuchBucket"
    assert absent("GET").refusal == "404 NoSuchBucket"
    assert absent("HEAD").status == 404


@pytest.mark.parametrize("name", ["ab", "Upper", "under_score", "a..b", "-ab", "1.2.3.4"])
def test_names(server: StrictS3Server, name: str) -> None:
    assert Raw(server, name)("PUT").refusal == "400 InvalidBucketName"


def test_a_bucket_is_made_once_and_removed_empty(raw: Raw) -> None:
    assert raw("PUT").refusal == "409 BucketAlreadyOwnedByYou"
    raw("PUT", "key")
    assert raw("DELETE").refusal == "409 BucketNotEmpty"
    raw("DELETE", "key")
    raw.begin("key")
    assert raw("DELETE").status == 204
    assert raw("HEAD").status == 404


def test_the_location(raw: Raw) -> None:
    assert raw("GET", query={"location": ""}).xml.text is None
    assert raw("HEAD").headers["x-amz-bucket-region"] == "us-east-1"


def test_another_region(raw: Raw) -> None:
    raw.server.settings(raw.bucket, region="eu-west-1")
    reply = raw("GET", "key")
    assert reply.refusal == "400 AuthorizationHeaderMalformed"
    assert reply.text("Region") == "eu-west-1"
    head = raw("HEAD", "key")
    assert (head.status, head.headers["x-amz-bucket-region"]) == (400, "eu-west-1")
    raw.signed = (raw.server.access_key_id, raw.server.secret_access_key, "eu-west-1")
    assert raw("PUT", "key").refusal == "200"
    assert raw("GET", query={"location": ""}).xml.text == "eu-west-1"


def test_a_permanent_redirect(raw: Raw) -> None:
    endpoint = "s3.eu-west-1.amazonaws.com"
    settings = {"region": "eu-west-1", "redirect": 301, "redirect_endpoint": endpoint}
    raw.server.settings(raw.bucket, **settings)
    reply = raw("GET", "key")
    assert reply.refusal == "301 PermanentRedirect"
    assert (reply.text("Endpoint"), reply.text("Region")) == (endpoint, "eu-west-1")
    assert reply.headers["x-amz-bucket-region"] == "eu-west-1"
    assert "location" not in reply.headers


def test_a_temporary_redirect(raw: Raw) -> None:
    raw.server.settings(raw.bucket, redirect=307, redirect_endpoint="elsewhere:80")
    reply = raw("PUT", "key", b"content")
    assert reply.refusal == "307 TemporaryRedirect"
    assert reply.headers["location"].startswith("http://elsewhere:80/")


def test_the_requester_pays(raw: Raw) -> None:
    raw.server.settings(raw.bucket, requester_pays=True)
    assert raw("PUT", "key").refusal == "403 AccessDenied"
    reply = raw("PUT", "key", x_amz_request_payer="requester")
    assert reply.refusal == "200"
    assert reply.headers["x-amz-request-charged"] == "requester"


def test_a_quota(raw: Raw) -> None:
    raw.server.settings(raw.bucket, quota_bytes=10)
    assert raw("PUT", "a", b"123456").refusal == "200"
    assert raw("PUT", "b", b"123456").refusal == "403 QuotaExceeded"
    copied = raw("PUT", "b", x_amz_copy_source=f"{raw.bucket}/a")
    assert copied.refusal == "403 QuotaExceeded"
    raw("DELETE", "a")
    assert raw("PUT", "b", b"123456").refusal == "200"


def test_a_public_bucket(raw: Raw) -> None:
    raw("PUT", "key", b"content")
    raw.server.settings(raw.bucket, public=True)
    raw.signed = None
    assert raw("GET", "key").body == b"content"


def test_the_default_encryption(raw: Raw) -> None:
    raw.server.settings(raw.bucket, encryption={"x-amz-server-side-encryption": "aws:kms"})
    raw("PUT", "key")
    assert raw("HEAD", "key").headers["x-amz-server-side-encryption"] == "aws:kms"


TAG = b"<Tagging><TagSet><Tag><Key>a</Key><Value>1</Value></Tag></TagSet></Tagging>"


@pytest.mark.parametrize(
    ("action", "asked"),
    [
        ("PutObject", lambda raw: raw("PUT", "x/new")),
        ("PutObject", lambda raw: raw("POST", "x/new", query={"uploads": ""})),
        ("PutObject", lambda raw: raw("PUT", "x/new", x_amz_copy_source=f"{raw.bucket}/x/key")),
        ("PutObjectAcl", lambda raw: raw("PUT", "x/new", x_amz_acl="public-read")),
        ("PutObjectTagging", lambda raw: raw("PUT", "x/new", x_amz_tagging="a=1")),
        ("PutObjectTagging", lambda raw: raw("PUT", "x/key", TAG, query={"tagging": ""})),
        ("GetObjectTagging", lambda raw: raw("GET", "x/key", query={"tagging": ""})),
        (
            "GetObjectTagging",
            lambda raw: raw("PUT", "x/new", x_amz_copy_source=f"{raw.bucket}/x/key"),
        ),
        ("GetObject", lambda raw: raw("GET", "x/key")),
        ("GetObject", lambda raw: raw("PUT", "y/new", x_amz_copy_source=f"{raw.bucket}/x/key")),
        ("DeleteObject", lambda raw: raw("DELETE", "x/key")),
        ("ListBucket", lambda raw: raw("GET", query={"list-type": "2", "prefix": "x/"})),
        ("ListBucketMultipartUploads", lambda raw: raw("GET", "", query={"uploads": ""})),
    ],
)
def test_a_policy_denies(raw: Raw, action: str, asked) -> None:
    raw.server.settings(raw.bucket, acls=True)
    raw("PUT", "x/key", b"content", x_amz_tagging="a=1")
    denied = {action: "" if action == "ListBucketMultipartUploads" else "x/"}
    raw.server.settings(raw.bucket, denied=denied)
    assert asked(raw).refusal == "403 AccessDenied"
    raw.server.settings(raw.bucket, denied={})
    assert asked(raw).status < 300


def test_a_policy_is_about_a_prefix(raw: Raw) -> None:
    raw.server.settings(raw.bucket, denied={"PutObject": "x/"})
    assert raw("PUT", "x/key").refusal == "403 AccessDenied"
    assert raw("PUT", "y/key").refusal == "200"


def test_who_may_not_list_learns_nothing_of_what_is_absent(raw: Raw) -> None:
    raw("PUT", "key", b"content")
    raw.server.settings(raw.bucket, denied={"ListBucket": ""})
    assert raw("GET", "absent").refusal == "403 AccessDenied"
    assert raw("HEAD", "absent").status == 403
    assert raw("GET", "key").body == b"content"


def test_each_key_of_a_bulk_deletion_is_judged(raw: Raw) -> None:
    for key in ("x/key", "y/key"):
        raw("PUT", key)
    raw.server.settings(raw.bucket, denied={"DeleteObject": "x/"})
    reply = delete_many(raw, delete_document("x/key", "y/key", quiet=True))
    assert reply.status == 200
    assert reply.texts("Error/Key") == ["x/key"]
    assert reply.texts("Error/Code") == ["AccessDenied"]
    assert (raw("HEAD", "x/key").status, raw("HEAD", "y/key").status) == (200, 404)
