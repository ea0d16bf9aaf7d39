"""A sidecar with little memory reads and writes, and the kernel ends nothing of it."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from sidecar.units import MIB
from tests.mount.buckets import bucket_sidecar
from tests.support.cgroups import Cgroup, new_cgroup
from tests.support.clouds import Cloud
from tests.support.sidecar import Sidecar

SMALLEST_MIB = 160
"""docs/sizing.md, for one bucket."""
LARGE_BYTES = 96 * MIB
READERS = 3


def forget_pages(path: Path) -> None:
    """So that the kernel asks the sidecar again."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def largest_mib(group: Cgroup) -> int:
    name = "memory.max_usage_in_bytes" if group.version == 1 else "memory.peak"
    return int((group.path / name).read_text()) // MIB


class Load:
    """Threads that read and write until they are told to end, and check every byte."""

    def __init__(self, mount: Path, large: dict[str, str], written_bytes: int) -> None:
        self._mount = mount
        self._written_bytes = written_bytes
        self._large = large
        self._over = threading.Event()
        self.passes = 0
        self.written: dict[str, str] = {}

    def run(self, seconds: float) -> None:
        jobs: list[Callable[[], None]] = [*[self._read] * READERS, self._read_anywhere, self._write]
        with ThreadPoolExecutor(len(jobs)) as threads:
            futures = [threads.submit(job) for job in jobs]
            wait(futures, seconds, FIRST_COMPLETED)
            self._over.set()
            for future in futures:
                future.result()

    def _read(self) -> None:
        choose = random.Random(threading.get_ident())
        while not self._over.is_set():
            name = choose.choice(list(self._large))
            assert digest(self._mount / name) == self._large[name]
            forget_pages(self._mount / name)
            self.passes += 1

    def _read_anywhere(self) -> None:
        choose = random.Random(7)
        while not self._over.is_set():
            with (self._mount / choose.choice(list(self._large))).open("rb", buffering=0) as file:
                for _ in range(50):
                    assert len(os.pread(file.fileno(), 4096, choose.randrange(LARGE_BYTES // 2)))

    def _write(self) -> None:
        number = 0
        while not self._over.is_set():
            choose = random.Random(number)
            content = b"".join(choose.randbytes(MIB) for _ in range(self._written_bytes // MIB))
            name = f"new-{number % 8}"
            (self._mount / name).write_bytes(content)
            self.written[name] = hashlib.sha256(content).hexdigest()
            number += 1


@pytest.mark.timeout(0)
@pytest.mark.parametrize(
    "seconds", [pytest.param(20, id="short"), pytest.param(600, id="soak", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize(
    ("limit_mib", "written_mib"),
    [
        pytest.param(SMALLEST_MIB * 11 // 10, 24, id="smallest and a tenth"),
        pytest.param(768, 400, id="files larger than the memory for what streams"),
    ],
)
def test_the_limit_is_enough(
    tmp_path: Path,
    s3: Cloud,
    limit_mib: int,
    written_mib: int,
    seconds: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    large = {}
    for number in range(3):
        data = random.Random(number).randbytes(LARGE_BYTES)
        s3.write(f"large-{number}", data)
        large[f"large-{number}"] = hashlib.sha256(data).hexdigest()
    with new_cgroup("memory") as group:
        group.limit(limit_mib * MIB)
        sidecar = bucket_sidecar(tmp_path, s3, prefix=group.entering)
        with sidecar:
            load = Load(tmp_path / "m", large, written_mib * MIB)
            load.run(seconds)
            said = (
                f"{load.passes} passes over {LARGE_BYTES // MIB} MiB, {len(load.written)} names, "
                f"at most {largest_mib(group)} MiB, page cache included"
            )
            assert group.oom_kills() == 0, sidecar.log()
            assert_nothing_died(sidecar)
            for name, wanted in load.written.items():
                assert hashlib.sha256(s3.read(name)).hexdigest() == wanted
            assert sidecar.stop() == 0
    assert load.passes
    assert load.written
    with capsys.disabled():
        print(f"\n    {said}", end=" ")


HOG = """
import sys, time
held = bytearray(int(sys.argv[1]))
time.sleep(600)
"""


def used_part_of(group: Cgroup) -> float:
    """The used part of the group's limit, as a process in the group sees it."""
    program = "from sidecar.mounter.system.memory_pressure import used_part; print(used_part())"
    command = [*group.entering, sys.executable, "-c", program]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def assert_nothing_died(sidecar: Sidecar) -> None:
    assert sidecar.volume_status("train")["healed"] == {"resend": 0, "remount": 0}
    assert "worker lost" not in sidecar.log(), sidecar.log()


def test_budgets_shrink_before_the_kernel_acts(tmp_path: Path, s3: Cloud) -> None:
    """Another process in the container takes most of its memory, and gives it back."""
    data = random.Random(1).randbytes(LARGE_BYTES)
    s3.write("large", data)
    limit_bytes = 512 * MIB
    with new_cgroup("memory") as group:
        group.limit(limit_bytes)
        with bucket_sidecar(tmp_path, s3, prefix=group.entering) as sidecar:
            used_bytes = limit_bytes * used_part_of(group)
            hog = subprocess.Popen(
                [
                    *group.entering,
                    sys.executable,
                    "-c",
                    HOG,
                    str(int(0.9 * limit_bytes - used_bytes)),
                ]
            )
            try:
                sidecar.wait_for(lambda: "memory is short" in sidecar.log())
                assert sidecar.metric("mount_sidecar_memory_budget_ratio") < 1
                assert digest(tmp_path / "m" / "large") == hashlib.sha256(data).hexdigest()
            finally:
                hog.kill()
                hog.wait()
            sidecar.wait_for(lambda: "there is memory again" in sidecar.log())
            assert group.oom_kills() == 0
            assert_nothing_died(sidecar)
            assert sidecar.stop() == 0
