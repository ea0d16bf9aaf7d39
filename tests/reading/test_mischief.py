"""Reading, writing and listing at once, through a proxy that also drips, floods and repeats.

No program sees an error, every checksum is right, and no call takes longer than its budget and one
attempt. MOUNT_SIDECAR_SOAK_MINUTES says how long the long form is.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.options import Options, Times
from sidecar.contract.spec import Volume
from sidecar.units import MIB
from tests.reading.buckets import fill
from tests.support.clouds import S3Cloud
from tests.support.faults import ALL_FAULTS, MISCHIEF, FaultProxy
from tests.support.sidecar import Sidecar
from tests.support.strict_server import StrictS3Server

SHORT_S = 20.0
SOAK_S = 60 * float(os.environ.get("MOUNT_SIDECAR_SOAK_MINUTES", "30"))
BUDGET_S = 120.0
LONGEST_ATTEMPT_S = 240.0
"""For a copy inside the store (decision 31)."""
NAMES = 130
PAGE = 20
"""Names in a page: so listings have tokens that can be repeated."""
RATE = 0.08


@pytest.fixture
def server(strict_s3_server: StrictS3Server) -> Iterator[StrictS3Server]:
    strict_s3_server.limits(max_page=PAGE)
    yield strict_s3_server
    strict_s3_server.reset()


class Work:
    """What programs do on the two mounts, and what must come of it.

    Attributes:
        written: path below the outputs mount to SHA-256.
        longest_s: that any step took, by its name.
        steps: how many were done.
    """

    def __init__(self, data: Path, out: Path, expected: dict[str, str]) -> None:
        self._data = data
        self._out = out
        self._expected = expected
        self._ends_s = 0.0
        self.written: dict[str, str] = {}
        self.longest_s: dict[str, float] = {}
        self.steps: Counter[str] = Counter()
        self._lock = threading.Lock()

    def run(self, seconds: float) -> None:
        """Do it all at once. Raises what a step raises."""
        self._ends_s = time.monotonic() + seconds
        workers = [self._read, self._read, self._list, self._write, self._write]
        with ThreadPoolExecutor(len(workers)) as pool:
            running = [
                pool.submit(self._repeat, step, number) for number, step in enumerate(workers)
            ]
            for future in running:
                future.result()

    def _repeat(self, step: Callable[[random.Random, str], None], number: int) -> None:
        dice = random.Random(number)
        name = step.__name__.removeprefix("_")
        while time.monotonic() < self._ends_s:
            began_s = time.monotonic()
            step(dice, f"w{number}")
            took_s = time.monotonic() - began_s
            with self._lock:
                self.steps[name] += 1
                self.longest_s[name] = max(self.longest_s.get(name, 0.0), took_s)

    def _read(self, dice: random.Random, _: str) -> None:
        key = dice.choice(sorted(self._expected))
        with (self._data / key).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert hashlib.file_digest(file, "sha256").hexdigest() == self._expected[key], key

    def _list(self, _: random.Random, __: str) -> None:
        found = sorted(os.listdir(self._data / "small"))
        assert found == sorted(
            key.removeprefix("small/") for key in self._expected if key.startswith("small/")
        )

    def _write(self, dice: random.Random, own: str) -> None:
        directory = self._out / own
        directory.mkdir(exist_ok=True)
        name = f"{own}/f{dice.randrange(12)}"
        what = dice.random()
        if what < 0.1 and name in self.written:
            (self._out / name).unlink()
            del self.written[name]
        elif what < 0.25 and name in self.written:
            target = f"{own}/f{dice.randrange(12)}"
            (self._out / name).rename(self._out / target)
            self.written[target] = self.written.pop(name)
        else:
            content = dice.randbytes(dice.choice([10, 4_000, 300_000, 6 * MIB]))
            with (self._out / name).open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            self.written[name] = hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("seconds", "stall_s"),
    [
        pytest.param(SHORT_S, 12.0, id="short"),
        pytest.param(SOAK_S, 60.0, id="soak", marks=pytest.mark.soak),
    ],
)
def test_nothing_hangs_and_every_byte_is_right(
    server: StrictS3Server, tmp_path: Path, seconds: float, stall_s: float
) -> None:
    server.create_bucket("data")
    server.create_bucket("out")
    clouds = S3Cloud(server, "data"), S3Cloud(server, "out")
    sizes = {f"small/{number:03d}": 10_000 + number for number in range(NAMES)}
    expected = fill(clouds[0], {**sizes, "large": 30 * MIB + 17})
    data, out = tmp_path / "data", tmp_path / "out"
    proxy = FaultProxy(server.port, seed=3, faults=(*ALL_FAULTS, *MISCHIEF), stall_s=stall_s)
    with proxy:
        secret = {**server.credentials(), "AWS_ENDPOINT_URL": proxy.endpoint}
        volumes = [
            Volume(
                name="data", kind="data", path=str(data), read_only=True, source=clouds[0].source()
            ),
            Volume(name="out", kind="outputs", path=str(out), source=clouds[1].source()),
        ]
        options = Options(part_bytes=5 * MIB, retry_s=BUDGET_S, names_s=0.5)
        with Sidecar(
            tmp_path / "run",
            volumes,
            outputs_path=out,
            secrets={"cloud": json.dumps(secret)},
            times=Times(ready_timeout_s=60),
            options=options,
        ) as sidecar:
            work = Work(data, out, expected)
            proxy.rate = RATE
            work.run(seconds)
            proxy.rate = 0.0
            assert sidecar.stop() == 0
        print(dict(proxy.requests), dict(proxy.injected), dict(work.steps), work.longest_s)
    keys = [key for key in clouds[1].keys() if not key.endswith("/")]  # noqa: SIM118
    found = {key: hashlib.sha256(clouds[1].read(key)).hexdigest() for key in keys}
    assert found == work.written
    assert max(work.longest_s.values()) < BUDGET_S + LONGEST_ATTEMPT_S
    assert min(work.steps.values()) > 0
    assert set(proxy.injected) & set(MISCHIEF)
