"""Reading and writing at once for minutes, on a store that behaves as S3, with and without faults.

``python -m benchmarks.faults`` has two such stores and a mount of each, and works on them in turn.
One of them resets the connection of each hundredth request, and one of its nine addresses is dead
at any time. Programs must see neither. Every byte is compared, read ones by the reader, written
ones in the store. Needs root: the store's name is in a hosts file that only this program sees.
"""

from __future__ import annotations

import http.client
import json
import mmap
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from benchmarks.failure import BenchFailure
from benchmarks.networks import S3LIKE_85
from benchmarks.processes import Child
from benchmarks.sendfile_server import COUNTS, HOST
from sidecar.contract.spec import Volume
from sidecar.units import MIB
from tests.support.network import replace_file
from tests.support.sidecar import Sidecar, bucket_volume

CASES: Final = ("without", "with")
_NAME: Final = "store.test"
_ADDRESSES: Final = 9
_STREAMS: Final = 2
"""The number of readers, and of writers."""
_MB: Final = 1_000_000
_START_S: Final = 30.0


class Side:
    """One store, and the two mounts on it.

    Attributes:
        rates: of each chunk of time, MB/s of all readers and of all writers.
    """

    def __init__(self, port: int, near_port: int, folder: Path, originals: list[mmap.mmap]) -> None:
        self._port = port
        self._near_port = near_port
        self._folder = folder
        self._originals = originals
        self.rates: list[tuple[float, float]] = []

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Mount both. Raises BenchFailure if something is not saved at the end."""
        login = {
            "AWS_ENDPOINT_URL": f"http://{_NAME}:{self._port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        volumes = [self._volume("data", read_only=True), self._volume("out", read_only=False)]
        secrets = {volume.name: json.dumps(login) for volume in volumes}
        out = self._folder / "out"
        with Sidecar(self._folder / "run", volumes, secrets=secrets, outputs_path=out) as running:
            yield
            if running.stop() != 0:
                raise BenchFailure("not everything was saved")

    def work(self, seconds: float) -> None:
        """Read and write for so long. Raises BenchFailure, and errors that a program would see."""
        end_s = time.monotonic() + seconds
        with ThreadPoolExecutor(2 * _STREAMS) as pool:
            work = (self._read, self._write)
            running = [
                [pool.submit(do, number, end_s) for number in range(_STREAMS)] for do in work
            ]
            reading, writing = (sum(one.result() for one in ones) / _MB for ones in running)
        self.rates.append((reading, writing))

    def facts(self) -> dict[str, Any]:
        """What the store counted."""
        return json.loads(b"".join(self._get(self._port, COUNTS)))  # type: ignore[no-any-return]

    def _volume(self, name: str, *, read_only: bool) -> Volume:
        kind = "data" if read_only else "outputs"
        url = f"s3://{name}/{name}/"
        return bucket_volume(
            name,
            self._folder / name,
            "s3",
            url,
            kind=kind,
            read_only=read_only,
            prefix=f"{name}/",
        )

    def _read(self, number: int, end_s: float) -> float:
        """Read the same file again and again; bytes a second."""
        original, done, began_s = memoryview(self._originals[number]), 0, time.monotonic()
        buffer = bytearray(MIB)
        while time.monotonic() < end_s:
            with (self._folder / f"data/{number}").open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                for start in range(0, len(original), MIB):
                    if file.readinto(buffer) != MIB or buffer != original[start : start + MIB]:
                        raise BenchFailure(f"wrong bytes at {start} of {file.name}")
                    done += MIB
                    if time.monotonic() > end_s:
                        break
        return done / (time.monotonic() - began_s)

    def _write(self, number: int, end_s: float) -> float:
        """Write new files as long as there is time, without comparing; bytes a second."""
        original, done, took_s = memoryview(self._originals[number]), 0, 0.0
        path = self._folder / f"out/{number}"
        while not done or time.monotonic() < end_s:
            began_s = time.monotonic()
            with path.open("wb", buffering=0) as file:
                for start in range(0, len(original), MIB):
                    file.write(original[start : start + MIB])
            took_s += time.monotonic() - began_s
            done += len(original)
            start = 0
            for block in self._get(self._near_port, f"/out/out/{number}"):
                if block != original[start : start + len(block)]:
                    raise BenchFailure(f"wrong bytes in the store near {start} of {path}")
                start += len(block)
            if start != len(original):
                raise BenchFailure(f"{path} has {start} bytes in the store")
            path.unlink()
        return done / took_s

    @staticmethod
    def _get(port: int, path: str) -> Iterator[bytes]:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise BenchFailure(f"{path}: {answer.status}")
        while block := answer.read(MIB):
            yield block
        connection.close()


@contextmanager
def _side(case: str, dying_s: float, folder: Path, data: Path) -> Iterator[Side]:
    behaviour = S3LIKE_85.behaviour
    assert behaviour is not None
    if case == "with":
        behaviour = replace(behaviour, reset=0.01, dying_s=dying_s)
    place = folder / case
    place.mkdir()
    log = place / "store.log"
    command = [sys.executable, "-m", "benchmarks.sendfile_server", "0", "0", "0", "0"]
    command += ["--processes=1", f"--addresses={_ADDRESSES}", f"--folder={data}"]
    with Child(command + behaviour.options(), {}, log) as child:
        child.wait_until(lambda: log.read_text().count("\n") > 1, "the store", _START_S)
        port, near_port = map(int, log.read_text().split())
        side = Side(port, near_port, place, [_mapped(path) for path in sorted(data.rglob("[0-9]"))])
        with side.mounted():
            yield side


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _run(seconds: float, chunks: int, dying_s: float, size_mib: int) -> dict[str, Any]:
    """The rates and the stores' counts of each case, and the ratios of the rates."""
    replace_file("/etc/hosts", "".join(f"127.0.0.{n + 1} {_NAME}\n" for n in range(_ADDRESSES)))
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as name, ExitStack() as stack:
        folder = Path(name)
        data = folder / "objects"
        (data / "data").mkdir(parents=True)
        for number in range(_STREAMS):
            with (data / f"data/{number}").open("wb") as file:
                choose = random.Random(number)
                for _ in range(size_mib):
                    file.write(choose.randbytes(MIB))
        sides = {case: stack.enter_context(_side(case, dying_s, folder, data)) for case in CASES}
        for _ in range(chunks):
            for side in sides.values():
                side.work(seconds / chunks / len(CASES))
        document: dict[str, Any] = {
            case: {
                "chunks": side.rates,
                "reading": _mean(side, lambda rates: rates[0]),
                "writing": _mean(side, lambda rates: rates[1]),
                "both": _mean(side, sum),
                "store": side.facts(),
            }
            for case, side in sides.items()
        }
    kinds = ("reading", "writing", "both")
    calm, faulty = (document[case] for case in CASES)
    return document | {"ratios": {kind: faulty[kind] / calm[kind] for kind in kinds}}


def _mean(side: Side, of: Callable[[tuple[float, float]], float]) -> float:
    return sum(map(of, side.rates)) / len(side.rates)


@click.command()
@click.option("--seconds", default=600.0, show_default=True, help="In all, of both cases.")
@click.option("--chunks", default=5, show_default=True, help="Of time, of each case.")
@click.option("--dying-s", default=10.0, show_default=True, help="How long an address is dead.")
@click.option("--size-mib", default=512, show_default=True, help="Of a file.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file of the result.")
def main(seconds: float, chunks: int, dying_s: float, size_mib: int, output: Path | None) -> None:
    """Read and write with and without faults, compare every byte, and print the rates."""
    document = _run(seconds, chunks, dying_s, size_mib)
    click.echo(f"{'MB/s':8} {'reading':>8} {'writing':>8} {'both':>8}")
    for case in (*CASES, "ratios"):
        numbers = (document[case][kind] for kind in ("reading", "writing", "both"))
        digits = 2 if case == "ratios" else 0
        click.echo(" ".join([f"{case:8}", *(f"{number:8.{digits}f}" for number in numbers)]))
    click.echo(f"accidents: {document['with']['store']['accidents']}; every byte was right")
    if output is not None:
        output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
