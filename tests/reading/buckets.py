"""A bucket of known content behind a proxy, and a sidecar that mounts it."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.contract.spec import Volume
from sidecar.units import MIB
from tests.support.clouds import S3Cloud
from tests.support.faults import FaultProxy
from tests.support.servers import S3Server
from tests.support.sidecar import Sidecar


def make_bucket(server: S3Server) -> S3Cloud:
    bucket = f"reading-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    return S3Cloud(server, bucket)


def fill(cloud: S3Cloud, sizes: Mapping[str, int]) -> dict[str, str]:
    """Objects of these sizes; the SHA-256 of each."""
    sums = {}
    for key, size in sizes.items():
        content = (random.Random(key).randbytes(min(size, MIB + 13)) * (size // MIB + 1))[:size]
        cloud.write(key, content)
        sums[key] = hashlib.sha256(content).hexdigest()
    return sums


def sidecar_behind(
    proxy: FaultProxy, cloud: S3Cloud, directory: Path, mount: Path, **settings: Any
) -> Sidecar:
    """A read-only mount whose requests go through the proxy."""
    secret = {**cloud.server.credentials(), "AWS_ENDPOINT_URL": proxy.endpoint}
    volume = Volume(name="v", kind="data", path=str(mount), read_only=True, source=cloud.source())
    return Sidecar(directory, [volume], secrets={"cloud": json.dumps(secret)}, **settings)
