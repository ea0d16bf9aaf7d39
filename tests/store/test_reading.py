from __future__ import annotations

import os
import random
import threading

import pytest

from sidecar.errors import NotFound, Stale
from sidecar.mounter.store.interface import Store
from tests.support.clouds import Cloud

SIZE_BYTES = 300_000


def fetch(store: Store, key: str, version: str, offset: int, size: int) -> bytes:
    buffer = memoryview(bytearray(size))
    count = store.get_range(key, version, offset, buffer)
    return bytes(buffer[:count])


def test_ranges_anywhere_and_beyond_the_end(readable: Cloud, reader: Store) -> None:
    content = os.urandom(SIZE_BYTES)
    readable.write("object", content)
    version = reader.head("object").version
    dice = random.Random(1)
    ranges = [(dice.randrange(SIZE_BYTES), dice.randrange(1, 70_000)) for _ in range(40)]
    edges = [
        (0, SIZE_BYTES),
        (0, SIZE_BYTES + 1000),
        (0, 1),
        (SIZE_BYTES - 1, 1),
        (SIZE_BYTES - 1, 100),
        (SIZE_BYTES, 10),
        (SIZE_BYTES + 5, 10),
        (7, 0),
    ]
    for offset, size in edges + ranges:
        got = fetch(reader, "object", version, offset, size)
        assert got == content[offset : offset + size], (offset, size)


def test_an_empty_object_reads_as_nothing(readable: Cloud, reader: Store) -> None:
    readable.write("empty", b"")
    assert fetch(reader, "empty", reader.head("empty").version, 0, 10) == b""


def test_many_threads_read_one_object(readable: Cloud, reader: Store) -> None:
    content = os.urandom(SIZE_BYTES)
    readable.write("object", content)
    version = reader.head("object").version
    wrong: list[int] = []

    def work(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(15):
            offset = dice.randrange(SIZE_BYTES)
            if fetch(reader, "object", version, offset, 5000) != content[offset : offset + 5000]:
                wrong.append(offset)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_pinned_version_is_stale_after_an_overwrite(readable: Cloud, reader: Store) -> None:
    readable.write("object", b"first")
    old = reader.head("object").version
    readable.write("object", b"other")
    with pytest.raises(Stale):
        fetch(reader, "object", old, 0, 5)
    assert fetch(reader, "object", reader.head("object").version, 0, 5) == b"other"


def test_a_deleted_object_is_not_found(readable: Cloud, reader: Store) -> None:
    readable.write("object", b"first")
    version = reader.head("object").version
    readable.delete("object")
    with pytest.raises(NotFound, match="object"):
        fetch(reader, "object", version, 0, 5)
    with pytest.raises(NotFound):
        reader.head("object")


def test_a_forked_child_reads_and_leaves_the_parents_connections_whole(
    readable: Cloud, reader: Store
) -> None:
    content = os.urandom(SIZE_BYTES)
    readable.write("object", content)
    version = reader.head("object").version
    assert fetch(reader, "object", version, 0, 1000) == content[:1000]

    def read_all(seed: int) -> bool:
        dice = random.Random(seed)
        offsets = [dice.randrange(SIZE_BYTES) for _ in range(30)]
        return all(
            fetch(reader, "object", version, offset, 20_000) == content[offset : offset + 20_000]
            for offset in offsets
        )

    # Concurrently: on a shared socket, each would get the other's answers.
    child = os.fork()
    if child == 0:
        good = False
        try:
            good = read_all(1) and reader.head("object").version == version
        finally:
            os._exit(0 if good else 1)
    try:
        mine = read_all(2)
    finally:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert mine
    assert status == 0


def test_a_range_of_whichever_version_there_is(readable: Cloud, reader: Store) -> None:
    buffer = memoryview(bytearray(40))
    with pytest.raises(NotFound):
        reader.get_range("object", None, 0, buffer)
    for content in (b"one", b"the other one"):
        readable.write("object", content)
        assert reader.get_range("object", None, 0, buffer) == len(content)
        assert buffer[: len(content)] == content
    assert reader.get_range("object", None, 4, buffer[:5]) == 5
    assert buffer[:5] == b"other"
    assert reader.get_range("object", None, 20, buffer) == 0
