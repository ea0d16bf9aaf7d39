"""What Google refuses and its emulator accepts: conditions, sessions, compositions, names."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest

from sidecar.units import MIB
from tests.support.servers import HOST
from tests.support.strict_gcs import CHUNK_BYTES, GcsLimits, StrictGcsServer


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Api:
    """Raw requests of the JSON API to one bucket."""

    def __init__(self, server: StrictGcsServer, bucket: str) -> None:
        self.server = server
        self.bucket = bucket
        self.path = f"/storage/v1/b/{bucket}/o"

    def __call__(
        self, method: str, path: str, body: Any = b"", *, headers: Any = None, **query: object
    ) -> Reply:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"content-type": "application/json", **(headers or {})}
        connection = http.client.HTTPConnection(HOST, self.server.port, timeout=30)
        try:
            target = f"{path}{'&' if '?' in path else '?'}{urlencode(query)}" if query else path
            connection.request(method, target, content, fields)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, found, response.read())
        finally:
            connection.close()

    def object(self, method: str, name: str, body: Any = b"", **query: object) -> Reply:
        return self(method, f"{self.path}/{quote(name, safe='')}", body, **query)

    def insert(self, name: str, content: bytes = b"x", **more: Any) -> Reply:
        resource = {"name": name, "metadata": more.pop("metadata", {})}
        body = (
            b"--B\r\ncontent-type: application/json\r\n\r\n"
            + json.dumps(resource).encode()
            + b"\r\n--B\r\ncontent-type: text/plain\r\n\r\n"
            + content
            + b"\r\n--B--"
        )
        headers = {"content-type": "multipart/related; boundary=B"}
        path = f"/upload{self.path}"
        return self("POST", path, body, headers=headers, uploadType="multipart", **more)

    def read(self, name: str, **query: object) -> Reply:
        path = f"/download{self.path}/{quote(name, safe='')}"
        return self("GET", path, alt="media", **query)

    def generation(self, name: str) -> int:
        return int(self.object("GET", name).json["generation"])

    def session(self, name: str, **query: object) -> str:
        """Begin a resumable upload; path and query of its session URI."""
        reply = self("POST", f"/upload{self.path}", {"name": name}, uploadType="resumable", **query)
        assert reply.status == 200, reply
        return reply.headers["location"].removeprefix(self.server.endpoint)

    def chunk(self, session: str, content: bytes, content_range: str) -> Reply:
        return self("PUT", session, content, headers={"content-range": f"bytes {content_range}"})


@pytest.fixture
def api(gcs_server: StrictGcsServer) -> Iterator[Api]:
    bucket = f"strict-{uuid.uuid4().hex[:12]}"
    gcs_server.create_bucket(bucket)
    yield Api(gcs_server, bucket)
    gcs_server.proxy.limits = GcsLimits()


def limit(api: Api, **changed: int) -> None:
    api.server.proxy.limits = GcsLimits(**changed)


def test_another_client_reads_and_writes(api: Api) -> None:
    bucket = api.server.client().bucket(api.bucket)
    content = bytes(range(256)) * 8192
    blob = bucket.blob("ü/ö +", chunk_size=CHUNK_BYTES)
    blob.upload_from_string(content)
    assert bucket.blob("ü/ö +").download_as_bytes() == content
    bucket.rename_blob(blob, "renamed")
    composed = bucket.blob("composed")
    composed.compose([bucket.get_blob("renamed")] * 2)
    assert composed.download_as_bytes() == content * 2


@pytest.mark.parametrize("operation", ["insert", "read", "get", "patch", "delete", "compose"])
def test_generation_conditions(api: Api, operation: str) -> None:
    api.insert("source")

    def ask(**query: object) -> int:
        api.insert("a", b"content")
        now = api.generation("a")
        query = {name: now if value == "now" else value for name, value in query.items()}
        asked = {
            "insert": lambda: api.insert("a", **query),
            "read": lambda: api.read("a", **query),
            "get": lambda: api.object("GET", "a", **query),
            "patch": lambda: api.object("PATCH", "a", {}, **query),
            "delete": lambda: api.object("DELETE", "a", **query),
            "compose": lambda: api(
                "POST", f"{api.path}/a/compose", {"sourceObjects": [{"name": "source"}]}, **query
            ),
        }
        return asked[operation]().status

    changed = 304 if operation in {"read", "get"} else 412
    assert ask(ifGenerationMatch="now") in {200, 204}
    assert ask(ifGenerationMatch=5) == 412
    assert ask(ifGenerationMatch=0) == 412
    assert ask(ifGenerationNotMatch=5) in {200, 204}
    assert ask(ifGenerationNotMatch="now") == changed
    assert ask(ifMetagenerationMatch=1) in {200, 204}
    assert ask(ifMetagenerationMatch=7) == 412
    assert ask(ifMetagenerationNotMatch=1) == changed


def test_a_condition_of_what_is_absent(api: Api) -> None:
    assert api.insert("a", ifGenerationMatch=5).status == 412
    assert api.object("GET", "a", ifGenerationMatch=5).status == 404
    assert api.object("DELETE", "a", ifGenerationMatch=5).status == 404
    assert api.insert("a", ifGenerationMatch=0).status == 200
    assert api.insert("a", ifGenerationMatch=0).status == 412


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_another_generation_is_absent(api: Api, method: str) -> None:
    api.insert("a")
    assert api.object(method, "a", b"{}", generation=5).status == 404


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("x" * 1024, 200),
        ("x" * 1025, 400),
        ("ü" * 513, 400),
        ("a\nb", 400),
        ("a\rb", 400),
        (".", 400),
        ("..", 400),
        (".well-known/acme-challenge/a", 400),
        ("a\x01b", 200),
    ],
)
def test_names(api: Api, name: str, status: int) -> None:
    assert api.insert(name).status == status
    api.insert("source")
    rewritten = f"{api.path}/source/rewriteTo/b/{api.bucket}/o/{quote(name, safe='')}"
    assert api("POST", rewritten).status == status
    begun = api("POST", f"/upload{api.path}", {"name": name}, uploadType="resumable")
    assert begun.status == status


def test_metadata_are_8_kib_at_most(api: Api) -> None:
    most = "v" * (8 * 1024 - 1)
    assert api.insert("a", metadata={"k": most}).status == 200
    assert api.insert("a", metadata={"k": f"{most}v"}).status == 400
    # The limit counts existing metadata too.
    assert api.object("PATCH", "a", {"metadata": {"l": "v"}}).status == 400
    assert api.object("PATCH", "a", {"metadata": {"k": None, "l": "v"}}).status == 200


def test_a_composition_has_32_sources_at_most(api: Api) -> None:
    api.insert("a")

    def compose(count: int, **more: object) -> int:
        sources = [{"name": "a", **more}] * count
        return api("POST", f"{api.path}/c/compose", {"sourceObjects": sources}).status

    assert [compose(count) for count in (0, 1, 32, 33)] == [400, 200, 200, 400]
    now = str(api.generation("a"))
    assert compose(1, generation=now) == 200
    assert compose(1, generation="5") == 404
    assert compose(1, objectPreconditions={"ifGenerationMatch": now}) == 200
    assert compose(1, objectPreconditions={"ifGenerationMatch": "5"}) == 412


def test_a_rewrite(api: Api) -> None:
    api.insert("a", bytes(3 * MIB))
    now = api.generation("a")

    def rewrite(target: str = "b", **query: object) -> Reply:
        return api("POST", f"{api.path}/a/rewriteTo/b/{api.bucket}/o/{target}", **query)

    assert rewrite(ifSourceGenerationMatch=5).status == 412
    assert rewrite(ifSourceMetagenerationMatch=5).status == 412
    assert rewrite(sourceGeneration=5).status == 404
    assert rewrite(ifGenerationMatch=5).status == 412
    assert rewrite(maxBytesRewrittenPerCall=MIB + 1).status == 400
    assert rewrite(ifSourceGenerationMatch=now, ifGenerationMatch=0).json["done"]
    assert rewrite(ifGenerationMatch=0).status == 412


def test_a_rewrite_in_several_calls(api: Api) -> None:
    api.insert("a", bytes(3 * MIB))
    path = f"{api.path}/a/rewriteTo/b/{api.bucket}/o"
    answers = []
    token: dict[str, str] = {}
    while not answers or not answers[-1]["done"]:
        reply = api("POST", f"{path}/b", maxBytesRewrittenPerCall=MIB, **token)
        answers.append(reply.json)
        token = {"rewriteToken": answers[-1].get("rewriteToken", "")}
    assert len(answers) == 3
    assert api.object("GET", "b").json["size"] == str(3 * MIB)
    limit(api, rewrite_calls=2)
    begun = api("POST", f"{path}/c")
    assert (begun.json["done"], api.object("GET", "c").status) == (False, 404)
    other = api("POST", f"{path}/d", rewriteToken=begun.json["rewriteToken"])
    assert other.status == 400


ATTRIBUTES = {
    "contentType": "text/csv",
    "contentEncoding": "gzip",
    "contentDisposition": "attachment",
    "contentLanguage": "de",
    "cacheControl": "no-store",
    "metadata": {"k": "v"},
}


def attributes(api: Api, name: str) -> dict[str, Any]:
    found = api.object("GET", name).json
    return {word: found[word] for word in ATTRIBUTES if found.get(word)}


def test_a_rewrite_replaces_all_attributes_or_none(api: Api) -> None:
    api.insert("a", b"content")
    api.object("PATCH", "a", ATTRIBUTES)
    path = f"{api.path}/a/rewriteTo/b/{api.bucket}/o"
    api("POST", f"{path}/same")
    assert attributes(api, "same") == ATTRIBUTES
    api("POST", f"{path}/other", {"metadata": {"l": "w"}, "cacheControl": "public"})
    plain = {"contentType": "application/octet-stream"}
    assert attributes(api, "other") == {**plain, "metadata": {"l": "w"}, "cacheControl": "public"}
    assert api.read("other").body == b"content"


def test_a_composition_is_new_and_has_the_attributes_of_the_request(api: Api) -> None:
    api.insert("a", b"content")
    api.object("PATCH", "a", ATTRIBUTES)
    before = api.generation("a")
    body = {"sourceObjects": [{"name": "a"}], "destination": {"metadata": {"l": "w"}}}
    made = api("POST", f"{api.path}/a/compose", body).json
    assert int(made["generation"]) == api.generation("a") > before
    assert attributes(api, "a") == {
        "contentType": "application/octet-stream",
        "metadata": {"l": "w"},
    }
    assert api.read("a").body == b"content"


def test_a_session(api: Api) -> None:
    session = api.session("a")
    asked = api.chunk(session, b"", "*/*")
    assert (asked.status, "range" in asked.headers) == (308, False)
    first = bytes([1]) * CHUNK_BYTES
    sent = api.chunk(session, first, f"0-{CHUNK_BYTES - 1}/*")
    assert (sent.status, sent.headers["range"]) == (308, f"bytes=0-{CHUNK_BYTES - 1}")
    # A status query completes nothing.
    asked = api.chunk(session, b"", "*/*")
    assert (asked.status, asked.headers["range"]) == (308, f"bytes=0-{CHUNK_BYTES - 1}")
    assert api.object("GET", "a").status == 404
    total = CHUNK_BYTES + 3
    done = api.chunk(session, b"end", f"{CHUNK_BYTES}-{total - 1}/{total}")
    assert (done.status, done.json["size"]) == (200, str(total))
    assert api.read("a").body == first + b"end"
    # A query after completion returns the same answer.
    assert api.chunk(session, b"", f"*/{total}").json == done.json


def test_a_session_that_ends_without_bytes(api: Api) -> None:
    session = api.session("a")
    api.chunk(session, bytes(CHUNK_BYTES), f"0-{CHUNK_BYTES - 1}/*")
    assert api.chunk(session, b"", f"*/{CHUNK_BYTES}").status == 200
    assert api.chunk(api.session("empty"), b"", "*/0").status == 200
    assert api.read("empty").body == b""


def test_chunks_are_multiples_of_256_kib(api: Api) -> None:
    session = api.session("a")
    assert api.chunk(session, bytes(100), "0-99/*").status == 400
    assert api.chunk(session, bytes(100), "0-98/*").status == 400
    assert api.chunk(session, bytes(100), "0-99/100").status == 200


def test_a_gap_and_an_overlap(api: Api) -> None:
    session = api.session("a")
    size = CHUNK_BYTES
    gap = api.chunk(session, bytes(size), f"{size}-{2 * size - 1}/*")
    assert (gap.status, b"exceeds already uploaded size of 0" in gap.body) == (503, True)
    api.chunk(session, b"1" * size, f"0-{size - 1}/*")
    again = api.chunk(session, b"2" * 2 * size, f"0-{2 * size - 1}/*")
    assert (again.status, again.headers["range"]) == (308, f"bytes=0-{2 * size - 1}")
    api.chunk(session, b"", f"*/{2 * size}")
    assert api.read("a").body == b"1" * size + b"2" * size


def test_a_session_that_is_cancelled(api: Api) -> None:
    session = api.session("a")
    assert api("DELETE", session).status == 499
    assert api.chunk(session, b"x", "0-0/1").status == 404
    assert api("DELETE", session).status == 404


def test_the_condition_of_a_session(api: Api) -> None:
    session = api.session("a", ifGenerationMatch=0)
    api.insert("a", b"another's")
    assert api.chunk(session, b"x", "0-0/1").status == 412
    assert api.read("a").body == b"another's"
    begun = api(
        "POST",
        f"/upload{api.path}",
        {"name": "a"},
        uploadType="resumable",
        ifGenerationMatch=0,
    )
    assert begun.status == 412
