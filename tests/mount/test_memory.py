"""Memory of a worker, as the machine sees it."""

from __future__ import annotations

import os
import re
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sidecar.contract.options import Options
from sidecar.units import MIB
from tests.mount.buckets import Refusing, bucket_sidecar
from tests.support.clouds import Cloud
from tests.support.servers import answer

NAMES = 40_000
DIRECTORIES = 6
ENTRY = (
    "<Contents><Key>{1}name-{0:08}</Key><Size>{0}</Size><ETag>{0:032x}</ETag>"
    "<LastModified>2020-01-01T00:00:00Z</LastModified></Contents>"
)


class ManyNames(Refusing):
    """An S3 server whose bucket has directories of many objects."""

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        query = parse_qs(urlsplit(handler.path).query)
        prefix = query.get("prefix", [""])[0]
        if not prefix.endswith("/"):
            names = "".join(
                f"<CommonPrefixes><Prefix>{number}/</Prefix></CommonPrefixes>"
                for number in range(DIRECTORIES)
            )
            answer(handler, 200, f"<ListBucketResult>{names}</ListBucketResult>".encode())
            return
        start = int(query.get("continuation-token", ["0"])[0])
        end = min(NAMES, start + int(query["max-keys"][0]))
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < NAMES else ""
        entries = "".join(ENTRY.format(number, prefix) for number in range(start, end))
        answer(handler, 200, f"<ListBucketResult>{entries}{more}</ListBucketResult>".encode())


def peak_bytes(pid: int) -> int:
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


def test_large_directories_one_after_the_other_take_the_memory_of_few(
    tmp_path: Path, s3: Cloud
) -> None:
    """Freed memory may stay with the process (pages in use), but is used again."""
    store = ManyNames()
    options = Options(names_s=1)
    settings: dict[str, Any] = {"secret": store.secret, "bucket": "bucket", "options": options}
    # On libfuse, where the kernel does not keep an inode for each entry.
    settings |= {"read_only": True, "transport": "libfuse"}
    with store.server, bucket_sidecar(tmp_path, s3, **settings) as sidecar:
        pid = sidecar.volume_status("train")["worker_pid"]
        before = peak_bytes(pid)
        grown = []
        for number in range(DIRECTORIES):
            assert len(os.listdir(tmp_path / f"m/{number}")) == NAMES
            grown.append(peak_bytes(pid) - before)
            time.sleep(3)  # Until it expires and the worker drops it.
        assert grown[0] > 10 * MIB
        assert grown[-1] < 2 * grown[0]
        assert sidecar.stop() == 0
