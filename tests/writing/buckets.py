"""A writable bucket of each cloud, mounted once for each test module."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Options, Times, TransportName
from sidecar.contract.spec import StoreName, Volume
from sidecar.units import MIB
from tests.mount.buckets import CLOUDS
from tests.support.clouds import Cloud
from tests.support.servers import GcsServer
from tests.support.sidecar import Sidecar

VOLUME = "out"
SMALL_PARTS = Options(part_bytes=5 * MIB)
"""Makes files of a few MiB multipart uploads."""
_numbers = itertools.count()


class Mounted:
    """A mounted outputs volume, and its bucket through an independent client.

    Attributes:
        path: where it is mounted.
        local: a directory beside it, on the local disk.
    """

    def __init__(self, cloud: Cloud, sidecar: Sidecar, path: Path, local: Path) -> None:
        self.cloud = cloud
        self.sidecar = sidecar
        self.path = path
        self.local = local

    @property
    def transport(self) -> TransportName:
        """The transport that serves the mount."""
        return self.sidecar.spec.volumes[0].options.transport

    def fresh_name(self) -> str:
        """A name that was not used before."""
        return f"t{next(_numbers)}"

    def fresh_directory(self) -> Path:
        """A new directory of the mount."""
        path = self.path / self.fresh_name()
        path.mkdir()
        return path

    def restart(self) -> None:
        """Stop the sidecar with SIGTERM, which must save everything, and start it again."""
        assert self.sidecar.stop() == 0
        assert self.sidecar.mounted() == []
        self.sidecar.start()

    def objects(self, directory: Path) -> dict[str, bytes]:
        """Path below a directory of the mount to content, as another client sees it.

        Objects that mark a directory are left out.
        """
        start = f"{directory.relative_to(self.path)}/"
        keys = self.cloud.keys()
        return {
            key.removeprefix(start): self.cloud.read(key)
            for key in keys
            if key.startswith(start) and not key.endswith("/")
        }


@contextmanager
def mounted(
    request: pytest.FixtureRequest,
    directory: Path,
    store: StoreName,
    transport: TransportName = "kernel",
    *,
    server_fixture: str = "",
    **settings: Any,
) -> Iterator[Mounted]:
    """An empty bucket of the session's server, mounted for a module.

    Args:
        server_fixture: another server than the one that the tests of a store usually have.
    """
    server = request.getfixturevalue(server_fixture or f"{store}_server")
    bucket = f"writing-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    cloud: Cloud = CLOUDS[store](server, bucket)  # type: ignore[abstract]  # the table's type
    path, local = directory / "m", directory / "local"
    local.mkdir()
    volume = Volume(name=VOLUME, kind="outputs", path=str(path), source=cloud.source())
    settings.setdefault("times", Times(ready_timeout_s=30))
    settings.setdefault("options", SMALL_PARTS)
    environment = {}
    if isinstance(server, GcsServer):
        environment["STORAGE_EMULATOR_HOST"] = server.endpoint
    with Sidecar(
        directory / "run",
        [volume],
        outputs_path=path,
        secrets={"cloud": server.credentials_json()},
        environment=environment,
        transport=transport,
        **settings,
    ) as sidecar:
        yield Mounted(cloud, sidecar, path, local)
