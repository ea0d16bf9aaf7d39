"""An object's properties are kept, whatever the mount does with the file.

On a server of each cloud; an independent client compares them before and after.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from sidecar.errors import StoreProtocolError
from sidecar.mounter.store.gcs.store import GcsStore
from sidecar.mounter.store.http.signed_request import Body, BufferedResponse, SignedRequest
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.mounter.store.http_store import WRITTEN
from sidecar.mounter.store.interface import Condition, Revision, Store
from sidecar.mounter.store.s3 import store as s3_module
from sidecar.mounter.store.store_errors import Call
from sidecar.units import MIB
from tests.filesystem.view import View
from tests.store.conftest import make_cloud
from tests.support import described
from tests.support.clouds import Cloud
from tests.support.strict_server import StrictS3Server

pytestmark = pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")

SMALL = b"0123456789" * 1000
LARGE = os.urandom(9 * MIB)
"""More than one part: writes are patched, or sent in parts."""


@pytest.fixture(params=["strict", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty bucket, on servers that keep properties: MinIO's gateway does not."""
    return make_cloud(request.param, request, monkeypatch)


@pytest.fixture
def strict(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud("strict", request, monkeypatch)


@pytest.fixture
def server(strict: Cloud) -> Iterator[StrictS3Server]:
    """The server of ``strict``, which counts requests."""
    assert isinstance(strict.server, StrictS3Server)
    strict.server.reset()
    yield strict.server
    strict.server.reset()


@pytest.fixture
def strict_store(strict: Cloud, secrets: Path) -> Iterator[Store]:
    strict.write_secret(secrets)
    opened = strict.open(secrets, with_metadata=True)
    yield opened
    opened.close()


def longer(old: bytes, more: bytes) -> Revision:
    """A revision that appends ``more``."""
    new = old + more

    def run(actions: Sequence[Callable[[], object]]) -> None:
        for action in actions:
            action()

    return Revision(
        len(new),
        [(len(old), len(new))],
        lambda offset, size: new[offset : offset + size],
        8 * MIB,
        run,
    )


def change(view: View, path: str, flags: int, offset: int, data: bytes) -> None:
    """Open, write, close."""
    handle = view.open(path, flags)
    view.fs.write(handle, offset, data)
    view.fs.flush(handle)
    view.fs.release(handle)


def chmod(view: View) -> None:
    view.fs.set_attributes(view.inode("file"), {"mode": 0o600})


def chown(view: View) -> None:
    view.fs.set_attributes(view.inode("file"), {"uid": 7, "gid": 8})


def utime(view: View) -> None:
    view.fs.set_attributes(view.inode("file"), {"mtime_ns": 10**18})


def append(view: View) -> None:
    change(view, "file", os.O_WRONLY, view.stat("file").size_bytes, b"more")


def change_the_middle(view: View) -> None:
    change(view, "file", os.O_RDWR, 5000, b"other")


def overwrite(view: View) -> None:
    change(view, "file", os.O_WRONLY | os.O_TRUNC, 0, SMALL[::-1])


def overwrite_with_much(view: View) -> None:
    change(view, "file", os.O_WRONLY | os.O_TRUNC, 0, LARGE[::-1])


def truncate(view: View) -> None:
    view.fs.set_attributes(view.inode("file"), {}, 10)


def lengthen(view: View) -> None:
    view.fs.set_attributes(view.inode("file"), {}, view.stat("file").size_bytes + 10)


def empty(view: View) -> None:
    view.fs.set_attributes(view.inode("file"), {}, 0)


def rename(view: View) -> None:
    view.rename("file", "other")
    view.rename("other", "file")


def rename_what_is_written(view: View) -> None:
    handle = view.open("file", os.O_WRONLY)
    view.fs.write(handle, 0, b"new")
    view.rename("file", "other")
    view.fs.flush(handle)
    view.fs.release(handle)
    view.rename("other", "file")


OPERATIONS = [
    chmod,
    chown,
    utime,
    append,
    change_the_middle,
    overwrite,
    overwrite_with_much,
    truncate,
    lengthen,
    empty,
    rename,
    rename_what_is_written,
]


FORGOTTEN = {"storage_class"}
"""What fake-gcs-server drops at the end of a session, also with Google's own client;
:func:`test_what_fake_gcs_server_forgets` checks the requests instead."""


def kept(cloud: Cloud, key: str, *, by_session: bool = False) -> described.Description:
    """An object's properties, without those that the tests' server cannot keep."""
    forgotten = FORGOTTEN if cloud.name == "gcs" and by_session else set()
    seen = described.seen(cloud, key)
    return {name: value for name, value in seen.items() if name not in forgotten}


@pytest.mark.parametrize("size", [len(SMALL), len(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_what_an_object_has_stays(
    cloud: Cloud,
    writable: Store,
    tmp_path: Path,
    operation: Callable[[View], None],
    size: int,
) -> None:
    described.write(cloud, "file", LARGE[:size])
    by_session = operation is overwrite_with_much
    before = kept(cloud, "file", by_session=by_session)
    assert before["metadata"] == described.FOREIGN[cloud.name]
    assert {described.TYPE, described.ENCODING, described.LANGUAGE} < {
        value for value in before.values() if isinstance(value, str)
    }
    view = View(writable, tmp_path)
    operation(view)
    assert kept(cloud, "file", by_session=by_session) == before
    # Again by the same mount, which has the properties of its own version in memory.
    append(view)
    assert kept(cloud, "file", by_session=by_session) == before
    # And by another one, which asks the store.
    append(View(writable, tmp_path / "other"))
    assert kept(cloud, "file", by_session=by_session) == before


def test_a_directory_is_renamed(cloud: Cloud, writable: Store, tmp_path: Path) -> None:
    described.write(cloud, "old/", b"")
    for name in ("a", "sub/b"):
        described.write(cloud, f"old/{name}", SMALL)
    before = described.seen(cloud, "old/a")
    View(writable, tmp_path).rename("old", "new")
    for name in ("", "a", "sub/b"):
        assert described.seen(cloud, f"new/{name}") == before


def test_a_directory_s_attributes_are_set(cloud: Cloud, writable: Store, tmp_path: Path) -> None:
    described.write(cloud, "dir/", b"")
    before = described.seen(cloud, "dir/")
    view = View(writable, tmp_path)
    view.fs.set_attributes(view.inode("dir"), {"mode": 0o700})
    view.fs.set_attributes(view.inode("dir"), {"mtime_ns": 10**18})
    assert described.seen(cloud, "dir/") == before


def test_a_link_s_attributes_are_set(cloud: Cloud, writable: Store, tmp_path: Path) -> None:
    described.write(cloud, "link.rclonelink", b"target")
    before = described.seen(cloud, "link.rclonelink")
    view = View(writable, tmp_path)
    view.fs.set_attributes(view.inode("link"), {"mtime_ns": 10**18})
    assert described.seen(cloud, "link.rclonelink") == before


def test_a_new_file_has_what_the_store_gives_it(
    cloud: Cloud, writable: Store, tmp_path: Path
) -> None:
    """Also one whose name another file had before."""
    cloud.write("plain", b"")
    view = View(writable, tmp_path)
    described.write(cloud, "file", SMALL)
    view.fs.unlink(1, "file")
    view.write("file", b"new")
    view.write("second", b"new")
    assert described.seen(cloud, "file") == described.seen(cloud, "second")
    assert described.seen(cloud, "file")["metadata"] == {}


def test_the_saved_file_replaces_another_one_with_all_that_it_has(
    cloud: Cloud, writable: Store, tmp_path: Path
) -> None:
    """Write under a temporary name, then rename: as on a disk, the new file's properties stay."""
    described.write(cloud, "file", SMALL)
    view = View(writable, tmp_path)
    view.write("file.tmp", b"new")
    plain = described.seen(cloud, "file.tmp")
    view.rename("file.tmp", "file")
    assert described.seen(cloud, "file") == plain


def test_a_version_that_another_writer_made_meanwhile(
    cloud: Cloud, writable: Store, tmp_path: Path
) -> None:
    """The last close wins, and the object keeps the other writer's properties."""
    cloud.write("file", b"old")
    view = View(writable, tmp_path)
    handle = view.open("file", os.O_WRONLY)
    view.fs.write(handle, 0, b"ours")
    described.write(cloud, "file", b"theirs")
    before = described.seen(cloud, "file")
    view.fs.flush(handle)
    view.fs.release(handle)
    assert cloud.read("file") == b"ours"
    assert described.seen(cloud, "file") == before


def test_what_a_listing_says_is_what_head_says(cloud: Cloud, writable: Store) -> None:
    described.write(cloud, "a", SMALL)
    cloud.write("plain", SMALL)
    writable.put("ours", SMALL)
    for info in writable.list_page("").objects:
        if cloud.name == "s3":
            assert info.properties is None
        else:
            assert info.properties == writable.head(info.key).properties


def test_the_same_properties_are_kept_once(cloud: Cloud, writable: Store) -> None:
    for key in ("a", "b"):
        described.write(cloud, key, SMALL)
    assert writable.head("a").properties is writable.head("b").properties


def test_an_upload_that_a_successor_completes(cloud: Cloud, writable: Store) -> None:
    part = LARGE[: 8 * MIB]
    described.write(cloud, "file", SMALL)
    before = kept(cloud, "file", by_session=True)
    upload = writable.start_upload("file", described.FOREIGN["s3"], like=writable.head("file"))
    receipt = upload.put_part(1, part)
    resumed = writable.resume_upload("file", upload.state, {1: (len(part), receipt)})
    resumed.complete()
    assert cloud.read("file") == part
    after = kept(cloud, "file", by_session=True)
    assert {**after, "metadata": before["metadata"]} == before


def test_what_fake_gcs_server_forgets(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, secrets: Path
) -> None:
    """Class and key are sent where the tests' server ignores them."""
    cloud = make_cloud("gcs", request, monkeypatch)
    cloud.write_secret(secrets)
    store = cloud.open(secrets)
    assert isinstance(store, GcsStore)
    described.write(cloud, "file", SMALL)
    key = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
    found = store.head("file")
    assert found.properties is not None
    with_key = {**found.properties, "kmsKeyName": key}
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
    transfer = store.transfer

    def record(
        call: Call,
        sign: Callable[[], SignedRequest],
        body: Body = (),
        accepted: Collection[int] = WRITTEN,
        timeout: AdaptiveTimeout | None = None,
    ) -> BufferedResponse:
        signed = sign()
        url = urlsplit(signed.target)
        query = dict(parse_qsl(url.query))
        if signed.method == "POST" and "json" in signed.headers["content-type"]:
            content = json.loads(bytes(body[0]))
            asked.append((url.path.rpartition("/")[2], query, content.get("destination", content)))
        # Not forwarded: the server refuses this parameter as unknown.
        plain = {name: value for name, value in query.items() if "msKey" not in name}
        target = f"{url.path}?{urlencode(plain)}" if plain else url.path
        return transfer(call, lambda: signed._replace(target=target), body, accepted, timeout)

    monkeypatch.setattr(store, "transfer", record)
    monkeypatch.setattr(store, "properties_of", lambda like: with_key)
    store.start_upload("file", like=found).abort()
    store.copy("file", "other")
    store.patch(found, "file", longer(SMALL, b"end"), {}, lambda state: None, like=found)
    store.close()
    assert [what for what, _, _ in asked] == ["o", "other", "compose"]
    for what, query, resource in asked:
        said = {name: resource[name] for name in found.properties}
        assert said == dict(found.properties), what
        parameter = "destinationKmsKeyName" if what == "other" else "kmsKeyName"
        assert query[parameter] == key


def test_what_is_put_together_of_copies(
    strict: Cloud, strict_store: Store, server: StrictS3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large for CopyObject, in place and to another name."""
    monkeypatch.setattr(s3_module, "MAX_COPY_BYTES", 6 * MIB)
    monkeypatch.setattr(s3_module, "COPY_PART_BYTES", 5 * MIB)
    server.settings(strict.bucket, acls=True)
    described.write_s3(
        strict,
        "file",
        LARGE,
        {"x-amz-tagging": "team=a", "x-amz-grant-read": f'uri="{described.EVERYBODY}"'},
    )
    before, allowed = described.seen(strict, "file"), described.grants(strict, "file")
    strict_store.copy("file", "file", metadata={**described.FOREIGN["s3"], "mode": "33184"})
    strict_store.copy("file", "other")
    asked = server.counts().requests
    assert asked["UploadPartCopy"] >= 2
    assert asked["CopyObject"] == 0
    for key in ("file", "other"):
        assert described.seen(strict, key) == before
        assert described.grants(strict, key) == allowed


# --- S3: what must be asked for, and what may be refused -----------------------------------


def test_grants_stay(
    strict: Cloud, strict_store: Store, server: StrictS3Server, tmp_path: Path
) -> None:
    server.settings(strict.bucket, acls=True)
    more = {"x-amz-grant-read": f'uri="{described.EVERYBODY}"', "x-amz-grant-read-acp": "id=friend"}
    for operation in OPERATIONS:
        described.write_s3(strict, "file", SMALL, more)
        allowed = described.grants(strict, "file")
        assert {(described.EVERYBODY, "READ"), ("friend", "READ_ACP")} < allowed
        operation(View(strict_store, tmp_path / operation.__name__))
        assert described.grants(strict, "file") == allowed, operation.__name__


def test_nothing_is_asked_that_is_not_there(
    strict: Cloud, strict_store: Store, server: StrictS3Server, tmp_path: Path
) -> None:
    """What a HEAD returns costs nothing more. Whether ACLs are in use is requested once."""
    described.write(strict, "file", LARGE, tags=False)
    view = View(strict_store, tmp_path)
    chmod(view)
    assert server.counts().requests == {
        "ListObjectsV2": 2,  # `file` might be a directory
        "HeadObject": 2,
        "PutObject": 1,
        "CopyObject": 1,
        "GetBucketOwnershipControls": 1,
    }
    for operation in (utime, append, overwrite, overwrite_with_much, rename):
        operation(view)
    asked = server.counts().requests
    assert asked["GetBucketOwnershipControls"] == 1
    assert asked["GetObjectAcl"] == asked["GetObjectTagging"] == 0


@pytest.mark.parametrize("denied", ["GetObjectTagging", "PutObjectTagging"])
def test_a_login_that_may_not_tag_goes_on_without(
    strict: Cloud, strict_store: Store, server: StrictS3Server, tmp_path: Path, denied: str
) -> None:
    described.write(strict, "file", SMALL)
    before = described.seen(strict, "file")
    server.settings(strict.bucket, denied={denied: ""})
    view = View(strict_store, tmp_path)
    for operation in (append, utime, rename, overwrite_with_much):
        operation(view)
    refusals = server.counts().refusals
    server.settings(strict.bucket, denied={})
    assert described.seen(strict, "file") == {**before, "tags": {}}
    assert sum(refusals.values()) <= 2  # Repeated after the credentials were renewed.


@pytest.mark.parametrize("operation", [chmod, rename])
def test_a_copy_by_a_login_that_may_not_tag(
    strict: Cloud,
    strict_store: Store,
    server: StrictS3Server,
    tmp_path: Path,
    operation: Callable[[View], None],
) -> None:
    described.write(strict, "file", SMALL)
    before = described.seen(strict, "file")
    server.settings(strict.bucket, denied={"GetObjectTagging": ""})
    operation(View(strict_store, tmp_path))
    server.settings(strict.bucket, denied={})
    assert described.seen(strict, "file") == {**before, "tags": {}}


@pytest.mark.parametrize("denied", ["GetObjectAcl", "PutObjectAcl", "GetBucketOwnershipControls"])
def test_a_login_that_may_not_see_or_give_grants(
    strict: Cloud, strict_store: Store, server: StrictS3Server, tmp_path: Path, denied: str
) -> None:
    server.settings(strict.bucket, acls=True, denied={denied: ""})
    try:
        if denied != "PutObjectAcl":
            more = {"x-amz-grant-read": f'uri="{described.EVERYBODY}"'}
        else:
            server.settings(strict.bucket, denied={})
            more = {"x-amz-grant-read": f'uri="{described.EVERYBODY}"'}
        described.write_s3(strict, "file", SMALL, more)
        server.settings(strict.bucket, denied={denied: ""})
        before = {name: described.seen(strict, "file")[name] for name in ("content-type", "tags")}
        view = View(strict_store, tmp_path)
        for operation in (append, chmod, rename):
            operation(view)
        after = described.seen(strict, "file")
        assert {name: after[name] for name in before} == before
    finally:
        server.settings(strict.bucket, denied={}, acls=False)


@pytest.mark.parametrize(
    "answer",
    [
        {"kind": "error", "status": 501, "code": "NotImplemented"},
        {"kind": "error", "status": 400, "code": "InvalidRequest"},
        {"kind": "error", "status": 404, "code": "NoSuchKey"},
    ],
    ids=lambda answer: answer["code"],
)
def test_a_server_that_knows_no_ownership(
    strict: Cloud,
    strict_store: Store,
    server: StrictS3Server,
    tmp_path: Path,
    answer: dict[str, Any],
) -> None:
    """Any unclear answer means that ACLs are not in use."""
    described.write(strict, "file", SMALL)
    before = described.seen(strict, "file")
    server.fault(**answer, operation="GetBucketOwnershipControls", times=None)
    view = View(strict_store, tmp_path)
    for operation in (append, chmod, overwrite):
        operation(view)
    assert described.seen(strict, "file") == before
    asked = server.counts().requests
    # An answer that says nothing about a bucket may belong to another request.
    attempts = 2 if answer["code"] == "InvalidRequest" else 1
    assert asked["GetBucketOwnershipControls"] == attempts
    assert asked["GetObjectAcl"] == 0


def test_archived_classes_are_not_repeated(
    strict: Cloud, strict_store: Store, tmp_path: Path
) -> None:
    """Otherwise nobody could read what was just written."""
    described.write_s3(strict, "file", SMALL, {"x-amz-storage-class": "GLACIER"})
    view = View(strict_store, tmp_path)
    overwrite(view)
    assert "x-amz-storage-class" not in described.seen(strict, "file")
    assert view.read("file") == SMALL[::-1]


def test_metadata_that_leave_no_room_for_ours(
    strict: Cloud, strict_store: Store, tmp_path: Path
) -> None:
    full = {f"x-amz-meta-{number}": "x" * 499 for number in range(4)}
    foreign = dict.fromkeys((f"x-amz-meta-{key}" for key in described.FOREIGN["s3"]), "")
    described.write_s3(strict, "file", SMALL, {**full, **foreign})
    before = described.seen(strict, "file")
    view = View(strict_store, tmp_path)
    append(view)
    chmod(view)
    assert described.seen(strict, "file") == before


@pytest.mark.parametrize("kind", ["s3", "strict"])
def test_bytes_that_are_no_ascii(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, secrets: Path, kind: str
) -> None:
    """Some stores return raw bytes; a UTF-8 letter may end with a byte that looks like a space."""
    cloud = make_cloud(kind, request, monkeypatch)
    cloud.write_secret(secrets)
    store = cloud.open(secrets)
    sent = "Grüße à la  carte, voilà".encode().decode("latin-1")
    try:
        store.put("one", b"", {"note": sent})
        one = store.head("one")
        assert one.metadata is not None
        store.put("two", b"", one.metadata, like=one)
        store.copy("two", "three", metadata=one.metadata)
        assert store.head("three").metadata == store.head("two").metadata == one.metadata
        if kind == "s3":
            assert one.metadata == {"note": sent}
    finally:
        store.close()


def test_a_transfer_coding_is_not_repeated(strict: Cloud, strict_store: Store) -> None:
    from sidecar.mounter.store.s3.properties import properties_in

    assert properties_in({"content-encoding": "gzip, aws-chunked"}) == {"content-encoding": "gzip"}
    assert properties_in({"content-encoding": "aws-chunked"}) == {}


def test_a_patch_is_made_like_what_it_replaces(cloud: Cloud, writable: Store) -> None:
    described.write(cloud, "file", LARGE)
    before = described.seen(cloud, "file")
    base = writable.head("file")
    made = writable.patch(
        base, "file", longer(LARGE, b"end"), base.metadata or {}, lambda state: None, like=base
    )
    if made is not None:  # Azure's client uploads in blocks with its own names.
        assert cloud.read("file") == LARGE + b"end"
        assert made.properties == writable.head("file").properties
    assert described.seen(cloud, "file") == before


def test_a_lost_answer_is_found_again_whatever_the_etag_is(
    strict: Cloud, strict_store: Store
) -> None:
    """Nobody can compute the ETags of what KMS encrypts."""
    described.write(strict, "file", SMALL)
    old = strict_store.head("file")
    upload = strict_store.start_upload("file", {"mtime": "1"}, like=old)
    receipt = upload.put_part(1, LARGE)
    made = strict_store.resolve_version(upload.complete())
    assert upload.complete().version == made.version
    again = strict_store.resume_upload("file", upload.state, {1: (len(LARGE), receipt)})
    assert again.complete(Condition(version=made.version)).version == made.version


def test_what_an_upload_was_to_replace_is_not_taken_for_it(
    strict: Cloud, strict_store: Store
) -> None:
    """It may have the same size and metadata: who writes may set the time to what it was."""
    strict_store.put("file", LARGE, {"mtime": "1"})
    upload = strict_store.start_upload("file", {"mtime": "1"}, like=strict_store.head("file"))
    upload.put_part(1, LARGE)
    upload.abort()
    with pytest.raises(StoreProtocolError, match="is gone"):
        upload.complete()
