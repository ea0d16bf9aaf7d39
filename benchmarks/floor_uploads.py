"""The floor of writing to an S3: files in parts, over any number of connections.

Requests are not signed: only the benchmarks' own S3 takes them.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from benchmarks import crew, programs
from benchmarks.buckets import Endpoint
from benchmarks.crew import Outcome
from benchmarks.failure import BenchFailure
from sidecar.units import MIB

PART_BYTES = 8 * MIB


class Put(NamedTuple):
    """One part: ``size_bytes`` bytes from ``offset`` of the source, sent to path and query."""

    url: str
    offset: int
    size_bytes: int


def run(endpoint: Endpoint, names: Sequence[str], source: Path, connections: int) -> Outcome:
    """Upload the source under each name. ``cpu_s`` is of the parts only.

    Raises:
        BenchFailure: an answer had the wrong status, or the run took too long.
    """
    size_bytes = source.stat().st_size
    with ThreadPoolExecutor(len(names)) as threads:
        began_s = time.perf_counter()
        uploads = list(threads.map(lambda name: _begin(endpoint, name), names))
        around_s = time.perf_counter() - began_s
        puts = [
            Put(f"{url}&partNumber={number}", offset, min(PART_BYTES, size_bytes - offset))
            for number, offset in enumerate(range(0, size_bytes, PART_BYTES), 1)
            for url in uploads
        ]
        job = {
            "address": endpoint.address,
            "source": str(source),
            "threads": connections,
            "processes": len(os.sched_getaffinity(0)),
            "puts": puts,
        }
        outcome = Outcome(**programs.run("benchmarks.floor_uploads", job))
        began_s = time.perf_counter()
        list(threads.map(lambda url: _complete(endpoint, url, len(puts) // len(names)), uploads))
        around_s += time.perf_counter() - began_s
    return replace(outcome, wall_s=outcome.wall_s + around_s)


def _begin(endpoint: Endpoint, name: str) -> str:
    """Path and query of a new upload."""
    path = f"/{endpoint.bucket}/{quote(endpoint.prefix + name)}"
    found = re.search(r"<UploadId>(.*)</UploadId>", _post(endpoint, f"{path}?uploads", ""))
    if found is None:
        raise BenchFailure("no upload was begun")
    return f"{path}?uploadId={found[1]}"


def _complete(endpoint: Endpoint, url: str, parts: int) -> None:
    numbers = "".join(f"<Part><PartNumber>{one}</PartNumber></Part>" for one in range(1, parts + 1))
    _post(endpoint, url, f"<CompleteMultipartUpload>{numbers}</CompleteMultipartUpload>")


def _post(endpoint: Endpoint, url: str, body: str) -> str:
    with closing(http.client.HTTPConnection(endpoint.address, timeout=60)) as connection:
        connection.request("POST", url, body)
        answer = connection.getresponse()
        if answer.status != 200:
            raise BenchFailure(f"{url}: status {answer.status}")
        return answer.read().decode()


def _putter(address: str, source: str) -> Callable[[Put], int]:
    connection = http.client.HTTPConnection(address, timeout=60)
    file = open(source, "rb")  # noqa: SIM115 - as long as the program

    def put(one: Put) -> int:
        connection.putrequest("PUT", one.url)
        connection.putheader("Content-Length", str(one.size_bytes))
        connection.endheaders()
        sent = connection.sock.sendfile(file, one.offset, one.size_bytes)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}")
        return sent

    return put


def _main() -> None:
    job = json.load(sys.stdin)
    try:
        outcome = crew.run(
            lambda: _putter(job["address"], job["source"]),
            [Put(*fields) for fields in job["puts"]],
            threads=job["threads"],
            processes=job["processes"],
        )
    except crew.CrewFailure as failure:
        sys.exit(str(failure))
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    _main()
