"""The raw LIST, run as a program: what listing a tree costs without a file system.

``http``: ListObjectsV2 over one keep-alive ``http.client`` connection, each URL signed just
before its request, answers parsed with the standard library (key, size, time, ETag).
``s3fs``: the same requests through ``S3FileSystem._call_s3``, which parses with botocore.
Requests are sequential, because a page's token is in the page before.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from minio.credentials.credentials import Credentials
from minio.signer import presign_v4
from minio.time import utcnow

from benchmarks import floor, programs
from benchmarks.servers import Endpoint

Client = Literal["http", "s3fs"]

_SIGNED_FOR_S = 3600


@dataclass(frozen=True, slots=True)
class Listed:
    """Objects, requests, and the time from the first request to the last answer."""

    objects: int
    requests: int
    wall_s: float


def run(endpoint: Endpoint, prefixes: Sequence[str], client: Client) -> Listed:
    """List the objects directly below each prefix of the bucket. Raises BenchFailure."""
    job = {
        "client": client,
        "address": endpoint.address,
        "access_key": endpoint.access_key,
        "secret_key": endpoint.secret_key,
        "authority": str(endpoint.authority) if endpoint.authority else None,
        "prefixes": list(prefixes),
    }
    return Listed(**programs.run("benchmarks.lists", job))


def _over_http(endpoint: Endpoint, prefixes: Sequence[str]) -> Listed:
    login = Credentials(endpoint.access_key, endpoint.secret_key)
    authority = str(endpoint.authority) if endpoint.authority else None
    connection = floor.connect(endpoint.address, authority)
    objects = requests = 0
    began_s = time.perf_counter()
    for prefix in prefixes:
        token: str | None = ""
        while token is not None:
            query = {"list-type": "2", "prefix": prefix, "delimiter": "/", "max-keys": "1000"}
            if token:
                query["continuation-token"] = token
            target = f"{endpoint.url}/{endpoint.bucket}?{urlencode(query, quote_via=quote)}"
            url = presign_v4(
                method="GET",
                url=urlsplit(target),
                region=endpoint.region,
                credentials=login,
                date=utcnow(),
                expires=_SIGNED_FOR_S,
            )
            connection.request("GET", f"{url.path}?{url.query}")
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                sys.exit(f"LIST: status {response.status}")
            found, token = _parse(body)
            objects, requests = objects + len(found), requests + 1
    return Listed(objects, requests, time.perf_counter() - began_s)


def _parse(body: bytes) -> tuple[list[tuple[str, ...]], str | None]:
    """(key, size, time, ETag) of each object, and the next page's token."""
    root = ET.fromstring(body)
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    fields = [f"{space}{name}" for name in ("Key", "Size", "LastModified", "ETag")]
    found = [
        tuple(one.findtext(name, "") for name in fields) for one in root.iter(f"{space}Contents")
    ]
    return found, root.findtext(f"{space}NextContinuationToken") or None


def _over_s3fs(endpoint: Endpoint, prefixes: Sequence[str]) -> Listed:
    import s3fs

    async def list_all() -> Listed:
        fs = s3fs.S3FileSystem(
            key=endpoint.access_key,
            secret=endpoint.secret_key,
            endpoint_url=endpoint.url,
            client_kwargs={
                "region_name": endpoint.region,
                "verify": str(endpoint.authority) if endpoint.authority else None,
            },
            asynchronous=True,
            skip_instance_cache=True,
        )
        session = await fs.set_session()
        objects = requests = 0
        began_s = time.perf_counter()
        for prefix in prefixes:
            more: dict[str, Any] = {}
            while True:
                answer = await fs._call_s3(
                    "list_objects_v2",
                    Bucket=endpoint.bucket,
                    Prefix=prefix,
                    Delimiter="/",
                    MaxKeys=1000,
                    **more,
                )
                objects, requests = objects + len(answer.get("Contents", ())), requests + 1
                if not answer.get("NextContinuationToken"):
                    break
                more = {"ContinuationToken": answer["NextContinuationToken"]}
        listed = Listed(objects, requests, time.perf_counter() - began_s)
        await session.close()
        return listed

    return asyncio.run(list_all())


def _main() -> None:
    job = json.load(sys.stdin)
    authority = Path(job["authority"]) if job["authority"] else None
    endpoint = Endpoint(job["address"], job["access_key"], job["secret_key"], authority=authority)
    run_client = {"http": _over_http, "s3fs": _over_s3fs}[job["client"]]
    listed = run_client(endpoint, job["prefixes"])
    json.dump(
        {"objects": listed.objects, "requests": listed.requests, "wall_s": listed.wall_s},
        sys.stdout,
    )


if __name__ == "__main__":
    _main()
