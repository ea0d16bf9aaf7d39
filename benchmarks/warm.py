"""The first minute of a training run, with and without a warm-up.

``python -m benchmarks.warm`` mounts a data set of small files and an index behind 20 ms for each
request. A program lists the folders, reads the index, and then ten batches of files in the order of
its seed, as a shuffling loader does. The first run notes its reads; in the next ones the warm-up
reads the same before they start, or beside them.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import host, latency
from benchmarks.networks import DELAY_S
from sidecar.contract.options import Options
from sidecar.contract.spec import StoreSource, Volume
from sidecar.units import MIB
from tests.support.servers import MinioServer
from tests.support.sidecar import Sidecar

_FILE_BYTES: Final = 110_000
_INDEX_BYTES: Final = 32 * MIB
_BATCH: Final = 64
_BATCHES: Final = 10
_WORKERS: Final = 4
_CASES: Final[dict[str, dict[str, Any]]] = {
    "without": {},
    "notes": {"warm_learned": "bench"},
    "before the start": {"warm_learned": "bench", "warm_list": (".",), "warm_s": 60.0},
    "beside the start": {"warm_learned": "bench", "warm_list": (".",)},
}


@dataclass(frozen=True, slots=True)
class _Times:
    """Seconds from ready to the first batch, and to the last one; bytes that programs read."""

    first_s: float
    last_s: float
    used_bytes: int


def _program(root: Path, files: int) -> _Times:
    """The first steps of a training run."""
    began_s = time.perf_counter()
    names = [
        entry.path
        for folder in sorted(os.scandir(root / "train"), key=lambda entry: entry.name)
        for entry in os.scandir(folder.path)
        if entry.stat().st_size
    ]
    names.sort()
    assert len(names) == files
    used = len((root / "index").read_bytes())
    order = random.Random(7).sample(names, _BATCH * _BATCHES)
    first_s = 0.0
    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as workers:
        for number in range(_BATCHES):
            batch = order[number * _BATCH : (number + 1) * _BATCH]
            used += sum(workers.map(lambda name: len(Path(name).read_bytes()), batch))
            first_s = first_s or time.perf_counter() - began_s
    return _Times(first_s, time.perf_counter() - began_s, used)


def _run(place: Path, secret: dict[str, str], files: int, options: dict[str, Any]) -> str:
    def volume(name: str, **more: Any) -> Volume:
        source = StoreSource(
            store="s3", url=f"s3://{name}", bucket=name, secret="s3", secret_key="key.json"
        )
        return Volume(name=name, path=str(place / name), source=source, **more)

    volumes = [
        volume("data", kind="data", read_only=True, options=Options(**options)),
        volume("outputs", kind="outputs"),
    ]
    host.drop_caches()
    with Sidecar(place / "run", volumes, secrets={"s3": json.dumps(secret)}) as sidecar:
        ready_s = sidecar.status()["time_to_ready_seconds"]
        times = _program(place / "data", files)
        if options:
            sidecar.wait_for(
                lambda: (
                    (sidecar.volume_status("data")["warmed"] or {}).get("state")
                    in ("done", "stopped")
                )
            )
        time.sleep(2)  # reads are noted once a second
        fetched = sidecar.metric("mount_sidecar_fetched_bytes_total", volume="data/data")
    unused = max(0.0, 1 - times.used_bytes / fetched)
    return (
        f"{ready_s:.1f} | {times.first_s:.2f} | {times.last_s:.2f} "
        f"| {fetched / MIB:.0f} | {unused:.1%}"
    )


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--files", default=2560, show_default=True)
def main(rounds: int, files: int) -> None:
    """Print one row for each case and round."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        with MinioServer(folder / "store") as server:
            client = server.client()
            for bucket in ("data", "outputs"):
                server.create_bucket(bucket)
            path = folder / "object"
            for key, size in [
                ("index", _INDEX_BYTES),
                *((f"train/{n % 10}/{n:05}.bin", _FILE_BYTES) for n in range(files)),
            ]:
                path.write_bytes(os.urandom(size))
                client.fput_object("data", key, str(path))
            address = server.endpoint.removeprefix("http://")
            with latency.proxy(address, DELAY_S, folder / "proxy.log") as delayed:
                secret = {**server.credentials(), "AWS_ENDPOINT_URL": f"http://{delayed}"}
                click.echo("| warm-up | ready s | first batch s | 10 batches s | MiB | unused |")
                click.echo("| --- | --- | --- | --- | --- | --- |")
                for number in range(rounds):
                    for case, options in _CASES.items():
                        if case == "notes" and number:
                            continue
                        place = folder / f"{number}-{case.replace(' ', '-')}"
                        click.echo(f"| {case} | {_run(place, secret, files, options)} |")


if __name__ == "__main__":
    main()
