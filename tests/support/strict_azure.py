"""Azurite behind a proxy that refuses what Microsoft's documentation says is refused.

Azurite itself checks lengths of block names, names of metadata and conditions. Sources, at
https://learn.microsoft.com/rest/api/storageservices: "Naming and referencing containers, blobs,
and metadata", "Setting and retrieving properties and metadata for Blob resources", "Put Blob",
"Put Block", "Put Block List", "Blob service error codes".
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from dataclasses import dataclass
from http.client import responses
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from sidecar.units import MIB
from tests.support.proxy import Ends, Head, Proxy, http_answer
from tests.support.servers import AzureServer, free_port

_METADATA = "x-ms-meta-"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ue000]")


@dataclass(frozen=True)
class AzureLimits:
    """Numbers of the documentation."""

    max_name: int = 1024
    max_segments: int = 254
    max_metadata_bytes: int = 8 * 1024
    max_blob_bytes: int = 5000 * MIB
    max_block_bytes: int = 4000 * MIB
    max_blocks: int = 50_000
    max_uncommitted: int = 100_000


class Refused(Exception):
    """An answer of the proxy itself."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.answer = http_answer(
            status,
            responses[status],
            body.encode(),
            Content_Type="application/xml",
            x_ms_error_code=code,
        )


class StrictAzure(Proxy):
    """The proxy.

    Attributes:
        limits: the present ones; a test may replace them.
    """

    def __init__(self, upstream_port: int, *, port: int = 0) -> None:
        super().__init__(upstream_port, port=port)
        self.limits = AzureLimits()
        self._staged: defaultdict[str, set[str]] = defaultdict(set)
        self._staging = threading.Lock()

    def exchange(self, request: Head, body: bytes, ends: Ends) -> bool:
        """Forward a request if it is legal."""
        url = urlsplit(request.target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        _, _, blob = unquote(url.path).removeprefix("/").partition("/")[2].partition("/")
        try:
            if blob and request.method == "PUT":
                self._check_name(blob)
                self._check_metadata(request)
                self._check_content(request, body, unquote(url.path), query)
        except Refused as refused:
            ends.client.sendall(refused.answer)
            return True
        return super().exchange(request, body, ends)

    def _check_name(self, name: str) -> None:
        segments = name.count("/") + 1
        if len(name) > self.limits.max_name or segments > self.limits.max_segments:
            raise Refused(400, "InvalidUri")
        if _CONTROL.search(name):
            raise Refused(400, "InvalidUri")

    def _check_metadata(self, request: Head) -> None:
        metadata = {
            name.removeprefix(_METADATA): value
            for name, value in request.fields.items()
            if name.startswith(_METADATA)
        }
        if sum(map(len, [*metadata, *metadata.values()])) > self.limits.max_metadata_bytes:
            raise Refused(400, "MetadataTooLarge")
        if not all(value.isascii() for value in metadata.values()):
            raise Refused(400, "InvalidMetadata")

    def _check_content(self, request: Head, body: bytes, blob: str, query: dict[str, str]) -> None:
        limits, kind = self.limits, query.get("comp", "")
        if kind == "block":
            if len(body) > limits.max_block_bytes:
                raise Refused(413, "RequestBodyTooLarge")
            with self._staging:
                self._staged[blob].add(query.get("blockid", ""))
                if len(self._staged[blob]) > limits.max_uncommitted:
                    raise Refused(409, "BlockCountExceedsLimit")
            return
        if kind == "blocklist":
            if len(re.findall(b"<(?:Latest|Committed|Uncommitted)>", body)) > limits.max_blocks:
                raise Refused(400, "BlockListTooLong")
        elif kind == "" and "x-ms-copy-source" not in request.fields:
            if len(body) > limits.max_blob_bytes:
                raise Refused(413, "RequestBodyTooLarge")
        else:
            return
        with self._staging:
            # Both commit, and drop what was staged.
            self._staged.pop(blob, None)


class StrictAzureServer(AzureServer):
    """Azurite behind :class:`StrictAzure`.

    Attributes:
        proxy: while it runs.
    """

    def __init__(self, directory: Path, *, account_key: str | None = None) -> None:
        super().__init__(directory, account_key=account_key)
        self._process_port = free_port()
        self.proxy: StrictAzure

    @property
    def process_port(self) -> int:
        """The emulator's own."""
        return self._process_port

    def start(self) -> Self:
        """Start the proxy and the emulator."""
        self.proxy = StrictAzure(self.process_port, port=self.port).start()
        return super().start()

    def stop(self) -> None:
        """Stop both."""
        super().stop()
        self.proxy.stop()
