"""An S3 that only lists, and makes its keys up: a directory of a million names at no cost.

``python -m tests.support.many_keys --port N --keys N``, in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import sys
import urllib.parse
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.servers import HOST, S3Server

DIRECTORY = "many"
_TIME = "2024-05-01T10:00:00.000Z"
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835  # odd, so that no two ETags are the same


def name_of(number: int) -> str:
    """The name of one of the keys, in the order of their numbers."""
    return f"sample-{number:08d}.parquet"


class ManyKeysServer(S3Server):
    """One bucket of any name, with ``keys`` objects of one byte in ``many/``."""

    def __init__(self, directory: Path, keys: int) -> None:
        super().__init__(directory)
        self.keys = keys

    def command(self) -> Sequence[str]:
        """The server in the foreground."""
        module = [sys.executable, "-m", "tests.support.many_keys"]
        return [*module, "--port", str(self.port), "--keys", str(self.keys)]


def _contents(number: int) -> str:
    etag = f"{(number + 1) * _SPREAD % (1 << 128):032x}"  # a name's hash costs more
    return (
        f"<Contents><Key>{DIRECTORY}/{name_of(number)}</Key><LastModified>{_TIME}</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><Size>1</Size></Contents>"
    )


@functools.lru_cache(maxsize=1000)  # the pages of a million keys, which buckets share
def _many_contents(start: int, end: int) -> str:
    return "".join(map(_contents, range(start, end)))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    keys = 0

    def do_GET(self) -> None:
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        body = f"<ListBucketResult>{self._page(query)}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _page(self, query: dict[str, str]) -> str:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        folder = f"{DIRECTORY}/"
        if folder.startswith(prefix) and prefix != folder and delimiter:
            found = f"<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
            return f"<IsTruncated>false</IsTruncated>{found}"
        if not prefix.startswith(folder) and not folder.startswith(prefix):
            return "<IsTruncated>false</IsTruncated>"
        beginning = prefix[len(folder) :]
        if beginning:  # one name is asked for
            numbers = [n for n in [_number(beginning)] if n is not None and n < self.keys]
            return "<IsTruncated>false</IsTruncated>" + "".join(map(_contents, numbers))
        start = int(query.get("continuation-token", "0"))
        end = min(self.keys, start + int(query.get("max-keys", "1000")))
        more = "<IsTruncated>false</IsTruncated>"
        if end < self.keys:
            more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{end}"
            more += "</NextContinuationToken>"
        return more + _many_contents(start, end)

    def log_message(self, *_: object) -> None:
        """Nothing: a line for each of a thousand pages helps nobody."""


def _number(beginning: str) -> int | None:
    digits = beginning.removeprefix("sample-").removesuffix(".parquet")
    return int(digits) if digits.isdecimal() and name_of(int(digits)) == beginning else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--keys", type=int, required=True)
    options = parser.parse_args()
    _Handler.keys = options.keys
    ThreadingHTTPServer.daemon_threads = True
    ThreadingHTTPServer((HOST, options.port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
