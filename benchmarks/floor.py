"""The floor: the cheapest client that Python can be, as a program of its own.

One keep-alive ``http.client`` connection per thread, every URL signed beforehand, ranged
GETs, ``readinto`` one reused buffer. No file system, no cache, no retries: what a mount
could reach if it cost nothing. ``python -m benchmarks.floor`` reads a job as JSON on
standard input (signed URLs do not belong into an argument list) and prints the outcome.
"""

from __future__ import annotations

import http.client
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from benchmarks.failure import BenchFailure
from benchmarks.servers import Endpoint

TIMEOUT_S = 600.0


class Get(NamedTuple):
    """One ranged GET: ``size_bytes`` bytes from ``offset`` of the object behind ``url``.

    ``url`` is path and query, as :meth:`Endpoint.presigned` gives them.
    """

    url: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the floor client did, from its first connection to the last byte.

    Attributes:
        cpu_s: user and system time; the interpreter's start is not in it.
        peak_rss_bytes: resident high-water mark.
    """

    requests: int
    size_bytes: int
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


def sequential(url: str, size_bytes: int, part_bytes: int) -> list[Get]:
    """The GETs that read one object from start to end."""
    return [
        Get(url, offset, min(part_bytes, size_bytes - offset))
        for offset in range(0, size_bytes, part_bytes)
    ]


def run(endpoint: Endpoint, gets: Sequence[Get], connections: int) -> Outcome:
    """Do the GETs in order, dealt to ``connections`` threads, in a process of their own.

    Raises:
        BenchFailure: an answer was not what was asked for, or TIMEOUT_S passed.
    """
    job = {"address": endpoint.address, "connections": connections, "gets": gets}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.floor"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchFailure(f"floor client: not done within {TIMEOUT_S:.0f} s") from None
    if done.returncode != 0:
        raise BenchFailure(f"floor client: {done.stderr.strip().splitlines()[-1]}")
    return Outcome(**json.loads(done.stdout))


class _Reader(threading.Thread):
    """One connection that takes the next GET until none is left or one has failed."""

    def __init__(self, address: str, gets: list[Get], failures: list[str]) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection(address, timeout=60)
        self._gets = gets
        self._failures = failures
        self._buffer = memoryview(bytearray(max(get.size_bytes for get in gets)))

    def run(self) -> None:
        while not self._failures:
            try:
                get = self._gets.pop()
            except IndexError:
                break
            try:
                self._read(get)
            except (OSError, http.client.HTTPException) as error:
                self._failures.append(f"{type(error).__name__}: {error}")
        self._connection.close()

    def _read(self, get: Get) -> None:
        last = get.offset + get.size_bytes - 1
        self._connection.request("GET", get.url, headers={"Range": f"bytes={get.offset}-{last}"})
        response = self._connection.getresponse()
        if response.status not in (200, 206) or response.length != get.size_bytes:
            raise http.client.HTTPException(f"status {response.status}, length {response.length}")
        filled = 0
        while filled < get.size_bytes:
            count = response.readinto(self._buffer[filled : get.size_bytes])
            if not count:
                raise http.client.HTTPException("the body ended early")
            filled += count


def _main() -> None:
    job = json.load(sys.stdin)
    gets = [Get(*fields) for fields in job["gets"]]
    pending = gets[::-1]  # pop() takes from the end, and is atomic.
    failures: list[str] = []
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    readers = [_Reader(job["address"], pending, failures) for _ in range(job["connections"])]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    outcome = Outcome(
        requests=len(gets),
        size_bytes=sum(get.size_bytes for get in gets),
        wall_s=time.perf_counter() - start_s,
        cpu_s=time.process_time() - start_cpu_s,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    if failures:
        sys.exit(failures[0])
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    _main()
