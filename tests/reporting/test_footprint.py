"""What a sidecar takes of a pod before it has done anything: memory, and other people's time."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.memory_rule import least_limit_bytes
from sidecar.units import MIB
from tests.mount.buckets import bucket_sidecar
from tests.reporting.conftest import InPod
from tests.reporting.test_cluster import CONDITION, conditions
from tests.support.cgroups import new_cgroup
from tests.support.clouds import Cloud
from tests.support.kubernetes_api import KubernetesApi


def proportional_bytes(pid: int) -> int:
    """Pages that several processes share count once (proc_pid_smaps(5))."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@pytest.mark.parametrize(("buckets", "most_mib", "by_hand"), [(1, 90, True), (5, 200, False)])
def test_an_idle_sidecar_is_small(
    api: KubernetesApi,
    in_pod: InPod,
    tmp_path: Path,
    buckets: int,
    most_mib: int,
    by_hand: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All its processes together, after the reporter has said what it had to say."""
    sidecar = in_pod()
    (volume,) = sidecar.spec.volumes
    volumes = [replace(volume, name=f"train-{n}", path=f"{tmp_path}/m{n}") for n in range(buckets)]
    sidecar.spec = replace(sidecar.spec, volumes=tuple(volumes))
    # Written by hand it is checked by a library, of which nothing may stay.
    sidecar.spec_text = sidecar.spec.to_json(indent=None) if by_hand else sidecar.spec.to_json()
    with sidecar:
        api.wait_for(lambda: conditions(api).get(CONDITION, {}).get("status") == "True", "ready")
        assert sidecar.get("/metrics")[0] == 200
        taken_mib = sum(map(proportional_bytes, sidecar.processes())) // MIB
        assert sidecar.stop() == 0
    assert taken_mib <= most_mib
    with capsys.disabled():
        print(f"\n    {buckets} bucket(s): {taken_mib} MiB", end=" ")


def test_what_the_injector_wrote_is_not_checked_again(tmp_path: Path, s3: Cloud) -> None:
    """It would load pydantic; one that somebody changed or wrote is still checked."""
    broken = tmp_path / "broken" / "pydantic.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('nobody needs it')\n")

    def run(text: str, *, tells: bool) -> int:
        digest = hashlib.sha256(text.encode()).hexdigest()
        script = 'exec "$@"' + (f" --spec-sha256 {digest}" if tells else "")
        settings: dict[str, Any] = {"prefix": ["sh", "-ec", script, "sh"]}
        environment = {"PYTHONPATH": f"{broken.parent}:{os.environ.get('PYTHONPATH', '')}"}
        sidecar = bucket_sidecar(tmp_path, s3, environment=environment, **settings)
        sidecar.spec_text = text
        sidecar.start(wait=False)
        try:
            if tells:
                sidecar.wait_ready()
                return sidecar.stop()
            return sidecar.wait()
        finally:
            sidecar.clean_up()

    text = bucket_sidecar(tmp_path, s3).spec.to_json(indent=None)
    assert run(text, tells=True) == 0
    assert run(text, tells=False) == 1  # a traceback: pydantic is broken


def test_a_limit_that_is_too_small_is_told_with_both_numbers(
    api: KubernetesApi, in_pod: InPod
) -> None:
    with new_cgroup("memory") as group:
        limit_bytes = least_limit_bytes(1) - MIB
        group.limit(limit_bytes)
        sidecar = in_pod(prefix=group.entering)
        try:
            assert sidecar.start(wait=False).wait() == 3
        finally:
            sidecar.clean_up()
        assert group.oom_kills() == 0
    (line,) = sidecar.said()
    assert line == (
        "error SC1096 MEMORY_TOO_SMALL: a memory limit of 159Mi is below the 160Mi that 1 "
        "bucket(s) need; raise the container's limit, in a pod by `mount-sidecar.io/memory-limit`"
    )
    assert sidecar.termination_message.read_text() == f"{line}\n"
    assert f"error {api.events()[0]['message']}" == line


def test_a_sidecar_starts_with_the_least_limit(in_pod: InPod) -> None:
    with new_cgroup("memory") as group:
        group.limit(least_limit_bytes(1))
        with in_pod(prefix=group.entering) as sidecar:
            assert sidecar.stop() == 0
        assert group.oom_kills() == 0
