"""The raw LIST, run as a program: what listing a tree costs without a file system.

``http``: one keep-alive ``http.client`` connection, each URL signed just before its request,
answers parsed with the standard library (key, size, time, ETag). ``s3fs``: the same requests
(ListObjectsV2) through ``S3FileSystem._call_s3``, which parses with botocore.
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

from benchmarks import floor, programs
from benchmarks.buckets import Endpoint, bucket

Client = Literal["http", "s3fs"]


@dataclass(frozen=True, slots=True)
class Listed:
    """Objects, requests, and the time from the first request to the last answer."""

    objects: int
    requests: int
    wall_s: float


def run(endpoint: Endpoint, folders: Sequence[str], client: Client) -> Listed:
    """List the objects directly below each folder of the data set. Raises BenchFailure."""
    job = {
        "client": client,
        "address": endpoint.address,
        "access_key": endpoint.access_key,
        "secret_key": endpoint.secret_key,
        "authority": str(endpoint.authority) if endpoint.authority else None,
        "store": endpoint.store,
        "folders": list(folders),
    }
    return Listed(**programs.run("benchmarks.lists", job))


def _over_http(endpoint: Endpoint, folders: Sequence[str]) -> Listed:
    objects, parse = bucket(endpoint), _PARSERS[endpoint.store]
    authority = str(endpoint.authority) if endpoint.authority else None
    connection = floor.connect(endpoint.address, authority)
    count = requests = 0
    began_s = time.perf_counter()
    for folder in folders:
        token: str | None = ""
        while token is not None:
            connection.request("GET", objects.listing(folder, token))
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                sys.exit(f"LIST: status {response.status}")
            found, token = parse(body)
            count, requests = count + len(found), requests + 1
    return Listed(count, requests, time.perf_counter() - began_s)


_Page = tuple[list[tuple[str, ...]], str | None]
"""(key, size, time, ETag) of each object, and the next page's token."""


def _parse_s3(body: bytes) -> _Page:
    root = ET.fromstring(body)
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    fields = [f"{space}{name}" for name in ("Key", "Size", "LastModified", "ETag")]
    found = [
        tuple(one.findtext(name, "") for name in fields) for one in root.iter(f"{space}Contents")
    ]
    return found, root.findtext(f"{space}NextContinuationToken") or None


def _parse_gcs(body: bytes) -> _Page:
    page = json.loads(body)
    fields = ("name", "size", "updated", "etag")
    found = [tuple(one.get(name, "") for name in fields) for one in page.get("items", ())]
    return found, page.get("nextPageToken") or None


def _parse_azure(body: bytes) -> _Page:
    root = ET.fromstring(body)
    fields = [
        "Name",
        *(f"Properties/{name}" for name in ("Content-Length", "Last-Modified", "Etag")),
    ]
    found = [tuple(one.findtext(name, "") for name in fields) for one in root.iter("Blob")]
    return found, root.findtext("NextMarker") or None


_PARSERS = {"s3": _parse_s3, "gcs": _parse_gcs, "azure": _parse_azure}


def _over_s3fs(endpoint: Endpoint, folders: Sequence[str]) -> Listed:
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
        for folder in folders:
            more: dict[str, Any] = {}
            while True:
                answer = await fs._call_s3(
                    "list_objects_v2",
                    Bucket=endpoint.bucket,
                    Prefix=endpoint.prefix + folder,
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
    endpoint = Endpoint(
        job["address"],
        job["access_key"],
        job["secret_key"],
        authority=authority,
        store=job["store"],
    )
    run_client = {"http": _over_http, "s3fs": _over_s3fs}[job["client"]]
    listed = run_client(endpoint, job["folders"])
    json.dump(
        {"objects": listed.objects, "requests": listed.requests, "wall_s": listed.wall_s},
        sys.stdout,
    )


if __name__ == "__main__":
    _main()
