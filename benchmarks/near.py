"""Many mounts that read the same objects, with and without a near bucket.

``python -m benchmarks.near`` starts the mounts at the same time, each with a state of its own, as
on as many nodes. The volume's own bucket is behind 20 ms and a limit of bandwidth that all share;
on as many nodes. The volume's own bucket is behind 20 ms and a limit of bandwidth that all share;
the near one is not. Every mount's bytes are compared by their SHA-256. Then the near store is
killed, fills up, and gets wrong blocks, each while they read. It enforces conditions, as S3 and
MinIO do; on a store that does not, two mounts in step may both fetch a block.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from benchmarks import latency
from benchmarks.networks import DELAY_S
from sidecar.contract.spec import StoreSource, Volume
from sidecar.units import GIB, MIB
from tests.support.faults import FaultProxy
from tests.support.servers import MinioServer
from tests.support.sidecar import Sidecar
from tests.support.strict_server import StrictS3Server

CASES: Final = ("without", "with", "once more", "killed", "full", "poisoned")
_FILES: Final = 8
_STEP_S: Final = 5.0
"""When the near store is killed, full or poisoned."""


@dataclass(frozen=True, slots=True)
class Result:
    """The figures of one case, for all mounts together.

    Attributes:
        seconds: until the last mount had read everything.
        far_bytes: read from the volume's own bucket.
        near_bytes: read from the near bucket.
    """

    seconds: float
    far_bytes: float
    near_bytes: float
    faults: float
    damaged: float


class _Bench:
    def __init__(self, folder: Path, mounts: int, size_bytes: int) -> None:
        self._folder = folder
        self._mounts = mounts
        self._size_bytes = size_bytes
        self._digests: dict[str, str] = {}

    def fill(self, server: MinioServer) -> None:
        """Make the data set."""
        server.create_bucket("far")
        block = self._size_bytes // _FILES
        for number in range(_FILES):
            path = self._folder / "object"
            digest = hashlib.sha256()
            with path.open("wb") as file, Path("/dev/urandom").open("rb") as dice:
                for _ in range(0, block, MIB):
                    data = dice.read(MIB)
                    digest.update(data)
                    file.write(data)
            server.client().fput_object("far", f"part{number}", str(path))
            self._digests[f"part{number}"] = digest.hexdigest()
            path.unlink()

    def run(self, case: str, far: MinioServer, address: str, near: StrictS3Server | None) -> Result:
        """One case. Raises AssertionError for a wrong byte, and for any error."""
        with contextlib.ExitStack() as stack:
            refusing = stack.enter_context(FaultProxy(near.port)) if near else None
            secrets = {"far": {**far.credentials(), "AWS_ENDPOINT_URL": f"http://{address}"}}
            if near and refusing:
                is_full = case == "full"
                endpoint = refusing.endpoint if is_full else near.endpoint
                secrets["near"] = {**near.credentials(), "AWS_ENDPOINT_URL": endpoint}
            nodes = [
                stack.enter_context(self._node(case, number, secrets))
                for number in range(self._mounts)
            ]
            began_s = time.monotonic()
            readers = [threading.Thread(target=self._read, args=(node,)) for node in nodes]
            for reader in readers:
                reader.start()
            if near and refusing:
                time.sleep(_STEP_S)
                if case == "killed":
                    near.stop()
                elif case == "full":
                    refusing.refuse = lambda method, _: "QuotaExceeded" if method == "PUT" else ""
                elif case == "poisoned":
                    _poison(near)
            for reader in readers:
                reader.join()
            seconds = time.monotonic() - began_s
            assert self._wrong == [], self._wrong

            def total(name: str) -> float:
                return sum(node.metric(f"mount_sidecar_{name}_total") for node in nodes)

            return Result(
                seconds,
                total("fetched_bytes"),
                total("near_hit_bytes"),
                total("near_faults"),
                total("near_damaged_blocks"),
            )

    _wrong: list[str]

    @contextlib.contextmanager
    def _node(
        self, case: str, number: int, secrets: dict[str, dict[str, str]]
    ) -> Iterator[Sidecar]:
        self._wrong = []
        place = self._folder / case.replace(" ", "-") / f"node{number}"
        far = StoreSource(
            store="s3", url="s3://far", bucket="far", secret="far", secret_key="key.json"
        )
        near = None
        if "near" in secrets:
            near = replace(far, url="s3://near", bucket="near", secret="near")
        volume = Volume(
            name="v",
            kind="data",
            path=str(place / "mount"),
            read_only=True,
            source=far,
            near=near,
        )
        texts = {name: json.dumps(secret) for name, secret in secrets.items()}
        with Sidecar(place / "run", [volume], secrets=texts) as sidecar:
            yield sidecar

    def _read(self, node: Sidecar) -> None:
        for name, digest in self._digests.items():
            path = f"{node.spec.volumes[0].path}/{name}"
            said = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=False)
            if said.stdout[:64] != digest:
                self._wrong.append(f"{path}: {said.stdout or said.stderr}")


def _poison(near: StrictS3Server) -> None:
    """Alter every block that is there by now."""
    client = near.client()
    for found in client.list_objects("near", recursive=True):
        with contextlib.closing(client.get_object("near", found.object_name)) as answer:
            data = bytearray(answer.read())
        data[len(data) // 2] ^= 1
        path = near.directory / "poison"
        path.write_bytes(data)
        client.fput_object("near", found.object_name, str(path))


@contextlib.contextmanager
def _near_server(folder: Path, case: str) -> Iterator[StrictS3Server | None]:
    """A new near store for each case, except ``once more``, which has the blocks of ``with``."""
    if case == "without":
        yield None
        return
    place = folder / f"near-{'with' if case == 'once more' else case}"
    is_new = not place.exists()
    with StrictS3Server(place) as server:
        if is_new:
            server.create_bucket("near")
        yield server


@click.command()
@click.option("--mounts", default=8, show_default=True)
@click.option("--size-gib", default=4.0, show_default=True, help="What each mount reads.")
@click.option("--mb-s", default=100.0, show_default=True, help="Of the volume's own bucket.")
@click.option("--case", "cases", multiple=True, type=click.Choice(CASES), default=CASES)
def main(mounts: int, size_gib: float, mb_s: float, cases: tuple[str, ...]) -> None:
    """Print one row for each case."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        bench = _Bench(folder, mounts, int(size_gib * GIB))
        with MinioServer(folder / "far") as far, contextlib.ExitStack() as stack:
            bench.fill(far)
            click.echo("| near bucket | seconds | GiB from far | from near | faults | damaged |")
            click.echo("| --- | --- | --- | --- | --- | --- |")
            address = stack.enter_context(
                latency.proxy(
                    far.endpoint.removeprefix("http://"), DELAY_S, folder / "proxy.log", mb_s
                )
            )
            for case in cases:
                with _near_server(folder, case) as near:
                    result = bench.run(case, far, address, near)
                click.echo(
                    f"| {case} | {result.seconds:.0f} | {result.far_bytes / GIB:.2f} "
                    f"| {result.near_bytes / GIB:.2f} | {result.faults:.0f} "
                    f"| {result.damaged:.0f} |"
                )


if __name__ == "__main__":
    main()
