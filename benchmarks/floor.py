"""The floor: the cheapest possible client in Python, run as a program.

One keep-alive ``http.client`` connection per thread, every URL signed beforehand, ranged
GETs, ``readinto`` one reused buffer. No file system, no cache: the speed of a mount that costs
nothing. A request without an answer in time is sent again on another connection.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import NamedTuple

from benchmarks import crew, programs
from benchmarks.buckets import Endpoint
from benchmarks.crew import Outcome

PATIENCE_S = 60.0


class Get(NamedTuple):
    """One ranged GET: ``size_bytes`` bytes from ``offset`` of the object behind ``url``.

    ``url`` is path and query, from :meth:`Bucket.presigned`.
    """

    url: str
    offset: int
    size_bytes: int


def sequential(url: str, size_bytes: int, part_bytes: int) -> list[Get]:
    """The GETs that read one object from start to end."""
    return [
        Get(url, offset, min(part_bytes, size_bytes - offset))
        for offset in range(0, size_bytes, part_bytes)
    ]


def run(
    endpoint: Endpoint,
    gets: Sequence[Get],
    connections: int,
    *,
    duration_s: float | None = None,
    patience_s: float = PATIENCE_S,
) -> Outcome:
    """Do the GETs in order, shared among the connections, in other processes.

    Args:
        connections: threads in all, each with one connection; in one process for each core
            (the fastest in measurements) if they divide evenly, else in one process.
        duration_s: stop after this; None: when all are done.
        patience_s: after how long a request is sent again.

    Raises:
        BenchFailure: an answer had the wrong status or length, or the run took too long.
    """
    cores = len(os.sched_getaffinity(0))
    job = {
        "address": endpoint.address,
        "authority": str(endpoint.authority) if endpoint.authority else None,
        "threads": connections,
        "processes": cores if connections % cores == 0 else 1,
        "duration_s": duration_s,
        "patience_s": patience_s,
        "gets": gets,
    }
    return Outcome(**programs.run("benchmarks.floor", job))


def connect(address: str, authority: str | None) -> http.client.HTTPConnection:
    """A connection; over TLS if ``authority``, the CA's certificate file, is given."""
    if authority is None:
        return http.client.HTTPConnection(address, timeout=60)
    context = ssl.create_default_context(cafile=authority)
    return http.client.HTTPSConnection(address, timeout=60, context=context)


def _getter(
    address: str, authority: str | None, buffer_bytes: int, patience_s: float
) -> Callable[[Get], int]:
    connection = connect(address, authority)
    connection.timeout = patience_s
    buffer = memoryview(bytearray(buffer_bytes))

    def ask(get: Get) -> http.client.HTTPResponse:
        last = get.offset + get.size_bytes - 1
        connection.request("GET", get.url, headers={"Range": f"bytes={get.offset}-{last}"})
        return connection.getresponse()

    def fetch(get: Get) -> int:
        try:
            response = ask(get)
        except TimeoutError:
            connection.close()  # the next request connects anew
            response = ask(get)
        if response.status not in (200, 206) or response.length != get.size_bytes:
            raise http.client.HTTPException(f"status {response.status}, length {response.length}")
        filled = 0
        while filled < get.size_bytes:
            count = response.readinto(buffer[filled : get.size_bytes])
            if not count:
                raise http.client.HTTPException("the body ended early")
            filled += count
        return filled

    return fetch


def _main() -> None:
    job = json.load(sys.stdin)
    gets = [Get(*fields) for fields in job["gets"]]
    buffer_bytes = max(get.size_bytes for get in gets)
    try:
        outcome = crew.run(
            lambda: _getter(job["address"], job["authority"], buffer_bytes, job["patience_s"]),
            gets,
            threads=job["threads"],
            processes=job["processes"],
            duration_s=job["duration_s"],
        )
    except crew.CrewFailure as failure:
        sys.exit(str(failure))
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    _main()
