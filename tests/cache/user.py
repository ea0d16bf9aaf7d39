"""Another process that uses a cache folder: ``python -m tests.cache.user WHAT FOLDER BUDGET SEED``.

``random``: enters, stores and reads random objects, checks every byte, prints ``right``.
``read``: reads one object as a reader does, prints how many bytes it had to fetch itself.
``claim``: takes a lease, prints ``claimed`` and never fetches.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from sidecar.mounter.cache.cache_entry import CACHE_BLOCK_BYTES, CacheEntry
from sidecar.mounter.cache.disk_cache import DiskCache
from sidecar.mounter.store.interface import ObjectInfo
from tests.cache.folders import acquire, an_object, open_cache

ROUNDS = 60
OBJECTS = 12
MOST_BLOCKS = 10
MOST_SMALL_BYTES = 2000
ONE_SIZE = 64 * CACHE_BLOCK_BYTES + 77


def objects() -> list[tuple[ObjectInfo, bytes]]:
    """The same in every process."""
    dice = random.Random(7)
    return [
        an_object(dice.randrange(1, MOST_BLOCKS * CACHE_BLOCK_BYTES), f"key{number}")
        for number in range(OBJECTS)
    ]


def use_small(cache: DiskCache, dice: random.Random) -> None:
    """Store one of some small objects, and read it if it is there."""
    info, content = an_object(dice.randrange(1, MOST_SMALL_BYTES), f"small{dice.randrange(99)}")
    cache.store_small(info, memoryview(content))
    buffer = memoryview(bytearray(info.size_bytes))
    assert not cache.read_small(info, 0, buffer) or buffer == content, "wrong bytes"


def use_at_random(cache: DiskCache, seed: int) -> None:
    dice = random.Random(seed)
    known = objects()
    held: list[CacheEntry] = []
    for _ in range(ROUNDS):
        use_small(cache, dice)
        info, content = dice.choice(known)
        entry = cache.acquire(info)
        if entry is None:  # others use all of the budget
            continue
        held.append(entry)
        start = dice.randrange(info.size_bytes)
        end = dice.randrange(start, info.size_bytes) + 1
        entry.store(start, memoryview(content)[start:end])
        buffer = memoryview(bytearray(end - start))
        count = entry.read(start, buffer)
        assert content[start : start + count] == buffer[:count], "wrong bytes"
        while len(held) > 2:
            cache.release(held.pop(0))


def fetch_one(cache: DiskCache, seed: int) -> int:
    """Read an object; the number of bytes that this process fetched."""
    info, content = an_object(ONE_SIZE, f"one{seed}")
    entry = acquire(cache, info)
    fetched = position = 0
    while position < ONE_SIZE:
        run = entry.claim(position, min(position + 8 * CACHE_BLOCK_BYTES, ONE_SIZE))
        if run.state == "valid":
            buffer = memoryview(bytearray(run.end - position))
            count = entry.read(position, buffer)
            assert buffer[:count] == content[position : position + count], "wrong bytes"
            position += count
        elif run.state == "leased":
            time.sleep(0.001)
        else:
            time.sleep(0.005)  # A GET.
            entry.store(position, memoryview(content)[position : run.end])
            fetched += run.end - position
            position = run.end
    return fetched


def main() -> None:
    what, folder, budget, seed = sys.argv[1:]
    cache = open_cache(Path(folder), int(budget))
    print("ready", flush=True)
    sys.stdin.readline()  # so that all begin at once
    if what == "random":
        use_at_random(cache, int(seed))
        print("right", flush=True)
    elif what == "read":
        print(fetch_one(cache, int(seed)), flush=True)
    else:
        info, _ = an_object(ONE_SIZE, f"one{seed}")
        assert acquire(cache, info).claim(0, ONE_SIZE).state == "missing"
        print("claimed", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
