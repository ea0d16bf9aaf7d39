"""Ready means written: the sidecar has written a probe object to each writable volume."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Options, Times, TransportName
from sidecar.contract.spec import ClaimSource, Volume
from sidecar.errors import StoreProtocolError
from sidecar.mounter.filesystem.names.names import PROBE_PREFIX
from sidecar.mounter.system.state_directory import StateDirectory
from sidecar.mounter.worker.write_check import (
    LEFT_S,
    check_writes,
    probe_key,
    remove_leftovers,
)
from tests.mount.buckets import TRANSPORTS, bucket_sidecar, in_namespace
from tests.mount.test_bad_starts import EXIT_MOUNT, refused
from tests.support.clouds import Cloud, S3Cloud
from tests.support.faults import FaultProxy
from tests.support.memory_store import Hook, MemoryStore
from tests.support.sidecar import Sidecar
from tests.support.strict_server import StrictS3Server

RUN = "user/project/experiments/1"
PROBE = r"\.mount-sidecar-probe-[0-9a-f]{16}"
WRITES = ("PUT", "POST")
"""Methods of uploads: PUT on S3 and Azure, POST on GCS."""


@pytest.fixture
def proxy(cloud: Cloud) -> Iterator[FaultProxy]:
    """A proxy between the sidecar and the cloud."""
    with FaultProxy(cloud.server.port) as proxy:
        yield proxy


def sidecar_behind(
    proxy: FaultProxy,
    tmp_path: Path,
    cloud: Cloud,
    *,
    kind: str = "outputs",
    read_only: bool = False,
    **settings: Any,
) -> Sidecar:
    volume = Volume(
        name="models",
        kind="outputs" if kind == "outputs" else "data",
        path=str(tmp_path / "m"),
        read_only=read_only,
        source=cloud.source(),
    )
    port = str(cloud.server.port)
    return Sidecar(
        tmp_path / "run",
        [volume],
        secrets={"cloud": cloud.server.credentials_json().replace(port, str(proxy.port))},
        outputs_path=tmp_path / "m" / RUN if kind == "outputs" else None,
        environment={"STORAGE_EMULATOR_HOST": proxy.endpoint},
        times=Times(ready_timeout_s=20),
        **settings,
    )


def line(proxy: FaultProxy, cloud: Cloud, code: str, what: str, kind: str = "outputs") -> str:
    """The line of a volume that is refused."""
    noun = "container" if cloud.name == "azure" else "bucket"
    service = {"s3": "S3", "gcs": "GCS", "azure": "Azure"}[cloud.name]
    url = re.escape(cloud.url())
    place = rf"{service} {noun} `{cloud.bucket}` at 127\.0\.0\.1:{proxy.port}"
    return rf"error {code}: volume {kind}/models \({url}\): {place} {what}"


def denies(*methods: str, code: str = "AccessDenied") -> Callable[[str, str], str]:
    return lambda method, _target: code if method in methods else ""


def probes_in(cloud: Cloud) -> list[str]:
    keys = cloud.keys()
    return [key for key in keys if "probe" in key]


def test_a_writable_bucket_was_written_read_and_cleaned(
    proxy: FaultProxy, tmp_path: Path, cloud: Cloud
) -> None:
    seen: list[tuple[str, str]] = []

    def note(method: str, target: str) -> str:
        seen.append((method, target.partition("?")[0]))
        return ""

    proxy.refuse = note
    with sidecar_behind(proxy, tmp_path, cloud) as sidecar:
        probes = [(method, target) for method, target in seen if "mount-sidecar-probe" in target]
        # Google's uploads have the name in their body, not in the URL.
        expected = ["GET", "DELETE"] if cloud.name == "gcs" else ["PUT", "GET", "DELETE"]
        if cloud.name == "s3":  # which conditions it checks: of a write two, of a copy one
            expected[2:2] = ["PUT", "PUT", "PUT"]
        assert [method for method, _ in probes] == expected
        run = RUN.replace("/", "%2F") if cloud.name == "gcs" else RUN
        assert all(re.search(rf"/{run}(/|%2F){PROBE}$", target) for _, target in probes)
        assert probes_in(cloud) == []
        assert sidecar.stop() == 0


def test_a_bucket_that_is_only_read_is_not_written(
    proxy: FaultProxy, tmp_path: Path, cloud: Cloud
) -> None:
    proxy.refuse = denies("PUT", "POST", "DELETE")
    with sidecar_behind(proxy, tmp_path, cloud, kind="data", read_only=True) as sidecar:
        assert not proxy.requests.keys() & {"PUT", "POST", "DELETE"}
        assert sidecar.stop() == 0


@pytest.mark.parametrize("kind", ["outputs", "data"])
def test_who_may_list_and_read_but_not_write(
    proxy: FaultProxy, tmp_path: Path, cloud: Cloud, kind: str
) -> None:
    proxy.refuse = denies(*WRITES)
    where = f"{RUN}/" if kind == "outputs" else ""
    refused(
        sidecar_behind(proxy, tmp_path, cloud, kind=kind),
        EXIT_MOUNT,
        line(
            proxy,
            cloud,
            "SC1053 WRITE_DENIED",
            f"denies put of `{where}{PROBE}`, and may be listed; grant writing to the volume's "
            "credentials, or declare it `readOnly: true`",
            kind,
        ),
    )


def test_who_may_write_but_not_delete(proxy: FaultProxy, tmp_path: Path, cloud: Cloud) -> None:
    proxy.refuse = denies("DELETE")
    refused(
        sidecar_behind(proxy, tmp_path, cloud),
        EXIT_MOUNT,
        line(
            proxy,
            cloud,
            "SC1054 DELETE_DENIED",
            f"denies delete of `{RUN}/{PROBE}`, and may be written; renaming and replacing files "
            "needs it: grant it to the volume's credentials, and keep no retention rule on what "
            "experiments write",
        ),
    )


def test_a_bucket_that_is_full(tmp_path: Path, s3: Cloud) -> None:
    with FaultProxy(s3.server.port) as proxy:
        proxy.refuse = denies("PUT", code="QuotaExceeded")
        refused(
            sidecar_behind(proxy, tmp_path, s3),
            EXIT_MOUNT,
            line(proxy, s3, "SC1051 QUOTA_EXCEEDED", "is full: it refuses to put"),
        )


def test_who_may_write_below_the_run_only(tmp_path: Path, s3: Cloud) -> None:
    """Permissions elsewhere do not matter and are not tested."""

    def refuse(method: str, target: str) -> str:
        return "" if method == "GET" or f"/{s3.bucket}/user/" in target else "AccessDenied"

    with FaultProxy(s3.server.port) as proxy:
        proxy.refuse = refuse
        with sidecar_behind(proxy, tmp_path, s3) as sidecar:
            (tmp_path / "m" / RUN / "file").write_text("x")
            assert sidecar.stop() == 0
        assert s3.read(f"{RUN}/file") == b"x"


def test_a_store_that_is_away_for_writing_is_waited_for(tmp_path: Path, s3: Cloud) -> None:
    began_s = time.monotonic()

    def refuse(method: str, _target: str) -> str:
        return "SlowDown" if method == "PUT" and time.monotonic() < began_s + 3 else ""

    with FaultProxy(s3.server.port) as proxy:
        proxy.refuse = refuse
        with sidecar_behind(proxy, tmp_path, s3) as sidecar:
            assert sidecar.stop() == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_successor_does_not_write_again(
    tmp_path: Path, s3: Cloud, transport: TransportName
) -> None:
    with FaultProxy(s3.server.port) as proxy:
        sidecar = sidecar_behind(
            proxy, tmp_path, s3, transport=transport, options=Options(healing="remount")
        )
        with sidecar:
            proxy.refuse = denies("PUT", "DELETE")
            os.kill(sidecar.volume_status("models")["worker_pid"], signal.SIGKILL)
            sidecar.wait_for(lambda: sidecar.volume_status("models")["healed"]["remount"] == 1)
            assert (tmp_path / "m" / RUN).is_dir()
            assert sidecar.stop() == 0


def test_what_a_killed_start_left_is_removed_by_the_next_one(tmp_path: Path, s3: Cloud) -> None:
    reached = threading.Event()

    def hold(method: str, _target: str) -> str:
        if method == "DELETE":
            reached.set()
            time.sleep(1)
        return ""

    with FaultProxy(s3.server.port) as proxy:
        proxy.refuse = lambda method, target: (
            hold(method, target) or "AccessDenied" * (method == "DELETE")
        )
        sidecar = sidecar_behind(proxy, tmp_path, s3).start(wait=False)
        try:
            assert reached.wait(300)
            sidecar.kill()
            assert len(probes_in(s3)) == 1
            proxy.refuse = denies()
            sidecar.start()
            assert probes_in(s3) == []
            assert sidecar.stop() == 0
        finally:
            sidecar.clean_up()


# --- as S3's policies have it --------------------------------------------------------------------


@pytest.fixture
def strict(strict_s3_server: StrictS3Server) -> Iterator[S3Cloud]:
    """An empty bucket on the strict S3."""
    bucket = f"written-{uuid.uuid4().hex[:12]}"
    strict_s3_server.create_bucket(bucket)
    strict_s3_server.reset()
    yield S3Cloud(strict_s3_server, bucket)
    strict_s3_server.settings(bucket, denied={}, quota_bytes=None)
    strict_s3_server.reset()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"denied": {"PutObject": ""}}, "SC1053 WRITE_DENIED: .* denies put of "),
        ({"denied": {"DeleteObject": ""}}, "SC1054 DELETE_DENIED: .* denies delete of "),
        ({"denied": {"GetObject": ""}}, "SC1041 ACCESS_DENIED: .* denies get of "),
        ({"quota_bytes": 0}, "SC1051 QUOTA_EXCEEDED: .* is full"),
    ],
)
def test_a_policy_that_lacks_something(
    tmp_path: Path,
    strict: S3Cloud,
    strict_s3_server: StrictS3Server,
    settings: dict[str, Any],
    said: str,
) -> None:
    strict_s3_server.settings(strict.bucket, **settings)
    refused(bucket_sidecar(tmp_path, strict), EXIT_MOUNT, f"error {said}.*")
    strict_s3_server.settings(strict.bucket, denied={}, quota_bytes=None)
    left = 1 if "DeleteObject" in settings.get("denied", {}) else 0
    assert len(probes_in(strict)) == left


def test_few_requests_and_only_before_ready(
    tmp_path: Path, strict: S3Cloud, strict_s3_server: StrictS3Server
) -> None:
    with bucket_sidecar(tmp_path, strict) as sidecar:
        # The last LIST searches for objects that earlier pods left; programs already run then.
        sidecar.wait_for(lambda: strict_s3_server.counts().requests["ListObjectsV2"] >= 3)
        requests = strict_s3_server.counts().requests
        # Two of the writes and the copy must be refused.
        counts = {"PutObject": 3, "CopyObject": 1, "GetObject": 1, "DeleteObject": 1}
        assert {name: requests[name] for name in counts} == counts
        assert sidecar.stop() == 0


# --- hostPaths and claims -----------------------------------------------------------------------


def directory_sidecar(tmp_path: Path, path: Path, **settings: Any) -> Sidecar:
    volume = Volume(name="local", kind="data", path=str(path), source=ClaimSource(claim="data-pvc"))
    return Sidecar(tmp_path / "run", [volume], times=Times(ready_timeout_s=20), **settings)


def test_a_claim_that_is_full(tmp_path: Path) -> None:
    """Names can be created, but no bytes written."""
    path = tmp_path / "claim"
    path.mkdir()
    full = in_namespace(
        f"mount -t tmpfs -o size=64k none {path}\nhead -c 64k /dev/zero > {path}/all"
    )
    refused(
        directory_sidecar(tmp_path, path, prefix=full),
        EXIT_MOUNT,
        rf"error SC1085 PATH_NOT_WRITABLE: volume data/local \(data-pvc\): `{path}` cannot be "
        "written: No space left on device; declare it `readOnly: true`, or make it writable",
    )


def test_a_claim_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.mkdir()
    with directory_sidecar(tmp_path, path) as sidecar:
        assert list(path.iterdir()) == []
        assert sidecar.stop() == 0


# --- names, and what is left ---------------------------------------------------------------------


def test_two_sidecars_at_once_have_two_names_and_each_its_own(tmp_path: Path) -> None:
    names = {probe_key("run/", StateDirectory.open(tmp_path / name)) for name in ("one", "two")}
    assert len(names) == 2
    assert names == {
        probe_key("run/", StateDirectory.open(tmp_path / name)) for name in ("one", "two")
    }
    assert all(re.fullmatch(f"run/{PROBE}", name) for name in names)


@pytest.mark.parametrize("content", ["", "half", "../../etc/x"])
def test_a_name_that_was_written_down_in_part_is_another_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "probe").write_text(content)
    assert re.fullmatch(PROBE, probe_key("", StateDirectory.open(tmp_path)))


def test_what_pods_left_that_are_gone_is_removed_after_an_hour(tmp_path: Path) -> None:
    store = MemoryStore()
    for name in ("old", "new"):
        store.put(f"run/{PROBE_PREFIX}{name}", b"")
    store.put("run/file", b"")
    content, info = store._objects[f"run/{PROBE_PREFIX}old"]
    old = info._replace(mtime_s=info.mtime_s - LEFT_S - 1)
    store._objects[old.key] = content, old
    made = check_writes(store, probe_key("run/", StateDirectory.open(tmp_path)))
    remove_leftovers(store, made)
    assert store.keys == [f"run/{PROBE_PREFIX}new", "run/file"]


def test_a_store_that_keeps_other_bytes(tmp_path: Path) -> None:
    def put_zeros(put: Hook, key: str, content: bytes, *arguments: Any) -> Any:
        return put(key, bytes(len(content)), *arguments)

    store = MemoryStore(put=put_zeros)
    with pytest.raises(StoreProtocolError, match="other bytes were read"):
        check_writes(store, "probe")
    assert store.keys == []
