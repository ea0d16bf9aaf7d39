from __future__ import annotations

import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from sidecar.errors import NotFound
from sidecar.mounter.store.interface import Store
from tests.store.raw import open_at
from tests.support.clouds import Cloud, CountingObserver
from tests.support.servers import HttpResponder, answer

UNUSUAL_KEYS = [
    "space and  two",
    "plus+sign",
    "percent%25 100%",
    "hash#mark",
    "question?mark=1&x=2",
    "quote\"s and 'single'",
    "unicode/ä ö ü/日本語/🙂",
    "tilde~ and (brackets) [square] {curly}",
    "comma,semicolon;colon:at@equals=dollar$bang!star*",
    "a" * 200 + "/" + "b" * 200,
]


def all_pages(store: Store, prefix: str, delimiter: str = "/", limit: int = 3) -> tuple[list, list]:
    objects, prefixes, token, pages = [], [], None, 0
    while True:
        page = store.list_page(prefix, token, delimiter=delimiter, limit=limit)
        assert len(page.objects) <= limit
        objects += page.objects
        prefixes += page.prefixes
        token = page.next_token
        pages += 1
        assert pages < 100
        if token is None:
            # fake-gcs-server gives every prefix on every page.
            return objects, list(dict.fromkeys(prefixes))


def test_a_level_comes_in_pages_with_sizes_times_and_versions(cloud: Cloud, store: Store) -> None:
    before = time.time()
    for number in range(5):
        cloud.write(f"dir/file{number}", b"x" * number)
        cloud.write(f"dir/sub{number}/deep", b"y")
    cloud.write("elsewhere", b"z")

    objects, prefixes = all_pages(store, "dir/")

    assert [item.key for item in objects] == [f"dir/file{number}" for number in range(5)]
    assert [item.size_bytes for item in objects] == [0, 1, 2, 3, 4]
    assert prefixes == [f"dir/sub{number}/" for number in range(5)]
    assert all(before - 2 <= item.mtime_s <= time.time() + 2 for item in objects)
    assert all(item.metadata is None for item in objects)
    for item in objects:
        head = store.head(item.key)
        assert (head.version, head.size_bytes) == (item.version, item.size_bytes)
        assert head.mtime_s == pytest.approx(item.mtime_s, abs=1)


def test_without_delimiter_every_key_below_comes(cloud: Cloud, store: Store) -> None:
    keys = ["d/a", "d/b/c", "d/b/d/e", "d/f", "d/g/h"]
    for key in [*keys, "other"]:
        cloud.write(key, b"x")
    objects, prefixes = all_pages(store, "d/", delimiter="", limit=2)
    assert [item.key for item in objects] == keys
    assert prefixes == []


def test_azure_is_not_asked_for_one_directory() -> None:
    """Azurite took 14 s to find it among 5,000 names, so that their mount was not ready in time."""
    asked: list[tuple[list[str], list[str]]] = []

    def answer_empty(handler: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        asked.append((query["maxresults"], query.get("delimiter", [])))
        answer(handler, 200, b"<EnumerationResults><Blobs/></EnumerationResults>")

    with HttpResponder(answer_empty) as server:
        store = open_at("azure", server.endpoint, CountingObserver())
        store.probe()
        store.list_page("", limit=1)
        store.list_page("", limit=3)
        store.close()
    assert asked == [(["1"], []), (["1"], []), (["3"], ["/"])]


def test_an_empty_bucket_is_one_empty_page(store: Store) -> None:
    page = store.list_page("")
    assert (page.objects, page.prefixes, page.next_token) == ([], [], None)


@pytest.mark.parametrize("prefix", ["root/", "deep/er root+%/ü/"])
def test_a_prefix_is_the_root(cloud: Cloud, secrets: Path, prefix: str) -> None:
    cloud.write_secret(secrets)
    cloud.write("outside", b"no")
    cloud.write(f"{prefix}inside", b"yes")
    cloud.write(f"{prefix}dir/deeper", b"yes")
    store = cloud.open(secrets, prefix)
    try:
        page = store.list_page("")
        assert [item.key for item in page.objects] == ["inside"]
        assert page.prefixes == ["dir/"]
        assert store.head("inside").size_bytes == 3
        with pytest.raises(NotFound):
            store.head("outside")
        made = store.put("made", b"here")
        assert made.key == "made"
        assert cloud.read(f"{prefix}made") == b"here"
        buffer = memoryview(bytearray(4))
        assert store.get_range("made", made.version, 0, buffer) == 4
        copied = store.copy("made", "dir/copied")
        assert copied.key == "dir/copied"
        store.delete("made")
        assert f"{prefix}made" not in list(cloud.keys())
        assert f"{prefix}dir/copied" in list(cloud.keys())
    finally:
        store.close()


@pytest.mark.parametrize("key", UNUSUAL_KEYS, ids=range(len(UNUSUAL_KEYS)))
def test_unusual_keys_go_both_ways(cloud: Cloud, store: Store, key: str) -> None:
    content = key.encode()
    cloud.write(key, content)
    listed = store.list_page("", delimiter="").objects
    assert [item.key for item in listed] == [key]
    assert store.head(key).version == listed[0].version
    buffer = memoryview(bytearray(len(content)))
    assert store.get_range(key, listed[0].version, 0, buffer) == len(content)
    assert bytes(buffer) == content

    store.put(key, content + b"2")
    assert cloud.read(key) == content + b"2"
    store.copy(key, f"copy of {key}")
    assert cloud.read(f"copy of {key}") == content + b"2"
    store.delete_many([key])
    assert cloud.keys() == [f"copy of {key}"]
