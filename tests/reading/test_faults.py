"""Reading through a store that breaks: every byte right, nothing hangs, retries counted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.units import MIB
from tests.reading.buckets import fill, make_bucket, sidecar_behind
from tests.support.faults import ALL_FAULTS, ENDLESS_FAULTS, FaultProxy
from tests.support.servers import S3Server

REASONS = {"connection", "stalled", "truncated", "server_error", "throttled", "credentials"}
SMALL = {f"small/{number:03d}": 350_000 + 777 * number for number in range(40)}


def sha256sums(mount: Path, timeout_s: float) -> dict[str, str]:
    """What sha256sum says of every file, several at once."""
    files = sorted(str(path.relative_to(mount)) for path in mount.rglob("*") if path.is_file())
    done = subprocess.run(
        ["xargs", "-0", "-n", "5", "-P", "4", "sha256sum"],
        input="\0".join(files).encode(),
        cwd=mount,
        capture_output=True,
        timeout=timeout_s,
        check=True,
    )
    lines = done.stdout.decode().splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check_everything(
    server: S3Server,
    tmp_path: Path,
    sizes: dict[str, int],
    budgets: Options,
    *,
    rate: float,
    timeout_s: float,
) -> FaultProxy:
    """Read a bucket of objects of these sizes through faults."""
    cloud = make_bucket(server)
    expected = fill(cloud, sizes)
    mount = tmp_path / "m"
    with FaultProxy(server.port, seed=5) as proxy:
        with sidecar_behind(proxy, cloud, tmp_path / "run", mount, options=budgets) as sidecar:
            proxy.rate = rate
            assert sha256sums(mount, timeout_s) == expected
            proxy.rate = 0.0
            counted = {
                reason: sidecar.metric("mount_sidecar_store_retries_total", reason=reason)
                for reason in sorted(REASONS)
            }
            print(dict(proxy.requests), dict(proxy.injected), counted)
            retried = sum(counted.values())
            assert retried > 0
            # A request on a keep-alive connection that was closed is repeated without a retry. On a
            # slow machine answers come so late that they are asked for again without a fault.
            needed = retried - counted["stalled"]
            assert needed <= sum(proxy.injected.values()) - proxy.injected["delay"]
            assert sidecar.stop() == 0
        return proxy


def test_every_byte_is_right_through_faults(s3_server: S3Server, tmp_path: Path) -> None:
    sizes = {**SMALL, "large": 45 * MIB + 17}
    # Small parts, so that there are requests enough for faults.
    check_everything(
        s3_server, tmp_path, sizes, Options(part_bytes=5 * MIB), rate=0.25, timeout_s=100
    )


def test_every_byte_is_right_through_faults_with_a_disk_cache(
    s3_server: S3Server, tmp_path: Path
) -> None:
    sizes = {**SMALL, "large": 45 * MIB + 17}
    budgets = Options(part_bytes=5 * MIB, cache="disk", cache_bytes=80 * MIB)
    check_everything(s3_server, tmp_path, sizes, budgets, rate=0.25, timeout_s=100)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("reset", "connection"),
        ("stall", "stalled"),
        ("truncate", "truncated"),
        ("delay", None),
        ("500", "server_error"),
        ("503", "throttled"),
        ("429", "throttled"),
        ("403", "credentials"),
        ("drip", "stalled"),
        ("flood", "connection"),
        ("trailer", None),
        ("cut head", "connection"),
        ("behind", None),
    ],
)
def test_each_fault_is_counted_by_its_reason(
    s3_server: S3Server, tmp_path: Path, fault: str, reason: str | None
) -> None:
    cloud = make_bucket(s3_server)
    expected = fill(cloud, {f"f{number}": 300_000 for number in range(12)})
    mount = tmp_path / "m"
    with (
        FaultProxy(s3_server.port, seed=1, faults=[fault]) as proxy,
        sidecar_behind(proxy, cloud, tmp_path / "run", mount) as sidecar,
    ):
        list(mount.iterdir())
        proxy.rate = 0.2 if fault in ENDLESS_FAULTS else 0.4  # each takes its whole time
        assert sha256sums(mount, 100) == expected
        proxy.rate = 0.0
        assert proxy.injected[fault] > 0
        # A machine under load breaks and stalls by itself, too.
        for other in REASONS - {"connection", "stalled"} | ({reason} if reason else set()):
            counted = sidecar.metric("mount_sidecar_store_retries_total", reason=other)
            assert bool(counted) == (other == reason)


@pytest.mark.soak
def test_two_gibibytes_through_faults(s3_server: S3Server, tmp_path: Path) -> None:
    sizes = {f"small/{number:04d}": 110_000 + number for number in range(2000)}
    sizes |= {f"large{number}": 256 * MIB - number for number in range(7)}
    budgets = Options(part_bytes=5 * MIB, cache="disk", cache_bytes=1024 * MIB)
    proxy = check_everything(s3_server, tmp_path, sizes, budgets, rate=0.05, timeout_s=1800)
    assert set(proxy.injected) == set(ALL_FAULTS)
