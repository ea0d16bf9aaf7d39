"""`sidecar try` as somebody uses it: the login of the machine, a directory, Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sidecar.contract.spec import Kind, StoreSource
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.errors import EXIT_MOUNT, EXIT_NOT_SAVED, EXIT_OK, EXIT_USAGE
from sidecar.mounter.system import mounts
from sidecar.units import MIB
from tests.mount.buckets import make_cloud
from tests.support.clouds import Cloud, S3Cloud
from tests.support.servers import AzureServer, GcsServer, MinioServer
from tests.support.waiting import wait_until

DEADLINE_S = 60.0


def login(cloud: Cloud, folder: Path) -> dict[str, str]:
    """The variables that the cloud's own tools take a login from."""
    server = cloud.server
    if isinstance(server, AzureServer):
        return {"AZURE_STORAGE_CONNECTION_STRING": server.connection_string}
    if isinstance(server, GcsServer):
        file = folder / "gcs.json"
        file.write_text(server.credentials_json())
        emulator = {"STORAGE_EMULATOR_HOST": server.endpoint}
        return {**emulator, "GOOGLE_APPLICATION_CREDENTIALS": str(file)}
    return server.credentials()


class Try:
    """One `sidecar try`, which a test ends by Ctrl-C."""

    def __init__(self, folder: Path, environment: Mapping[str, str], *arguments: str) -> None:
        self.directory = folder / "m"
        self.state = folder / "state"
        self._lines: list[str] = []
        command = [sys.executable, "-m", "sidecar", "try", *arguments]
        self.process = subprocess.Popen(
            [word.replace("DIR", str(self.directory)) for word in command],
            env={**os.environ, **environment, "XDG_STATE_HOME": str(self.state)},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Its next line; empty at its end."""
        assert self.process.stderr is not None
        return self.process.stderr.readline().rstrip("\n")

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, list[str]]:
        """Ctrl-C; the exit status, and what it says until then."""
        self.process.send_signal(number)
        assert self.process.stderr is not None
        lines = self.process.stderr.read().splitlines()
        return self.process.wait(DEADLINE_S), lines

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.stderr is not None
        with self.process.stderr as output:
            output.read()
        self.process.wait(DEADLINE_S)
        mounts.clear(str(self.directory))


@contextlib.contextmanager
def left_open(path: Path, content: bytes) -> Iterator[None]:
    """A file that a program has open when the mount ends."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(file, content)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(file)


@pytest.fixture(params=["s3", "gcs", "azure"])
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request, monkeypatch, request.param)


@pytest.fixture
def s3(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    return make_cloud(request, monkeypatch, "s3")


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[list[Try]]:
    tries: list[Try] = []
    yield tries
    for one in tries:
        one.clean_up()


def test_a_bucket_is_there_until_ctrl_c(cloud: Cloud, tmp_path: Path, begun: list[Try]) -> None:
    cloud.write("folder/there", b"content")
    one = Try(tmp_path, login(cloud, tmp_path), cloud.url("folder/"), "DIR")
    begun.append(one)
    assert one.line() == f"{cloud.url('folder/')} is at {one.directory}, writable. Ctrl-C ends it."
    assert (one.directory / "there").read_bytes() == b"content"
    with left_open(one.directory / "open", b"not closed yet"):
        (one.directory / "closed").write_bytes(b"closed")
        assert cloud.read("folder/closed") == b"closed"
        status, lines = one.end()
    assert status == EXIT_OK, lines
    assert lines[-1] == f"{one.directory} is unmounted; everything is saved"
    assert cloud.read("folder/open") == b"not closed yet"
    assert not os.listdir(tmp_path / "state" / "mount-sidecar")
    assert not [mount for mount in mounts.mounted() if str(tmp_path) in mount.path]


def test_read_only_and_with_options(s3: Cloud, tmp_path: Path, begun: list[Try]) -> None:
    s3.write("there", b"content" * 1000)
    options = (
        "--option",
        "cache=disk",
        "--option",
        "cacheBytes=64Mi",
        "--option",
        "retrySeconds=2",
    )
    one = Try(tmp_path, login(s3, tmp_path), s3.url(), "DIR", "--read-only", *options)
    begun.append(one)
    assert one.line() == f"{s3.url()} is at {one.directory}, read-only. Ctrl-C ends it."
    with pytest.raises(OSError, match="Read-only"):
        (one.directory / "new").touch()
    assert (one.directory / "there").read_bytes() == b"content" * 1000
    status, _ = one.end(signal.SIGTERM)
    assert status == EXIT_OK
    assert list(one.state.rglob("cache"))  # for the next time


def test_one_line_if_the_bucket_does_not_exist(
    cloud: Cloud, tmp_path: Path, begun: list[Try]
) -> None:
    url = cloud.url().replace(cloud.bucket, "no-such-bucket")
    one = Try(tmp_path, login(cloud, tmp_path), url, "DIR")
    begun.append(one)
    lines = [one.line(), one.line()]
    assert re.match("error SC1042 BUCKET_NOT_FOUND: volume data/try ", lines[0]), lines
    assert re.fullmatch(rf"its log is {re.escape(str(one.state))}/.*/log", lines[1])
    assert one.process.wait(DEADLINE_S) == EXIT_MOUNT


def test_what_is_not_saved_is_saved_by_the_next_one(
    s3_server: MinioServer, tmp_path: Path, begun: list[Try]
) -> None:
    with MinioServer(tmp_path / "server") as server:
        server.create_bucket("bucket")
        s3: Cloud = S3Cloud(server, "bucket")
        arguments = (s3.url(), "DIR", "--option", "retrySeconds=1", "--option", "graceSeconds=8")
        one = Try(tmp_path, login(s3, tmp_path), *arguments)
        begun.append(one)
        assert "Ctrl-C ends it" in one.line()
        forged = one.directory / "a\nerror SC1043 LOGIN_REJECTED: forged\x1b[2J\u202e"
        with left_open(one.directory / "open", b"bytes"), left_open(forged, b"bytes"):
            server.stop()
            status, lines = one.end()
        assert status == EXIT_NOT_SAVED, lines
        assert any("not saved: data/try: open" in line for line in lines), lines
        named = r"not saved: data/try: a\nerror SC1043 LOGIN_REJECTED: forged\x1b[2J\u202e ("
        assert any(line.startswith(named) for line in lines), lines
        assert "".join(lines).isprintable(), lines
        (log,) = one.state.rglob("log")
        assert not [line for line in log.read_text().split("\n") if line.startswith("error SC1043")]
        assert lines[-1] == "run the same command again to save it"
        server.start()
        again = Try(tmp_path, login(s3, tmp_path), *arguments)
        begun.append(again)
        assert "Ctrl-C ends it" in again.line()
        assert s3.read("open") == b"bytes"
        assert again.end()[0] == EXIT_OK


def test_it_does_not_outlive_whoever_started_it(
    s3: Cloud, tmp_path: Path, begun: list[Try]
) -> None:
    one = Try(tmp_path, login(s3, tmp_path), s3.url(), "DIR")
    begun.append(one)
    assert "Ctrl-C ends it" in one.line()
    one.process.kill()
    wait_until(
        lambda: all(mount.path != str(one.directory) for mount in mounts.mounted()),
        "it is unmounted",
    )


REFUSED = {
    "no bucket": (
        ["https://x/y", "DIR"],
        "SC1008 BUCKET_URL_INVALID: `https://x/y` is no bucket's URL; one of s3://",
    ),
    "no option": (
        ["s3://b12/", "DIR", "--option", "x"],
        "SC1001 USAGE: --option x: must be NAME=VALUE",
    ),
    "unknown option": (
        ["s3://b12/", "DIR", "--option", "cach=disk"],
        "SC1003 UNKNOWN_KEY: unknown option `--option.cach` (did you mean `cache`?)",
    ),
    "a system's directory": (
        ["s3://b12/", "/usr/lib/new"],
        "SC1022 PATH_OVERLAP: data volume `try` at `/usr/lib/new` overlaps the system's",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_line_for_what_cannot_be(name: str, tmp_path: Path, begun: list[Try]) -> None:
    arguments, line = REFUSED[name]
    one = Try(tmp_path, {}, *arguments)
    begun.append(one)
    assert one.line().startswith(f"error {line}")
    assert one.process.wait(DEADLINE_S) == EXIT_USAGE
    assert not one.state.exists()


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path, begun: list[Try]) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "file").touch()
    one = Try(tmp_path, {}, "s3://bucket", "DIR")
    begun.append(one)
    assert one.line() == (
        f"error SC1001 USAGE: `{tmp_path / 'm'}` is not empty; "
        "name a directory that is, or a new one"
    )
    assert one.process.wait(DEADLINE_S) == EXIT_USAGE


@pytest.mark.parametrize("name", ["log", "message", "spec.json", "secrets", "state"])
def test_a_link_where_it_keeps_things_leads_nowhere(
    name: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    begun: list[Try],
) -> None:
    """A folder for root's trial may be where another user can write."""
    # Only Azure's login is written there.
    cloud = make_cloud(request, monkeypatch, "azure" if name == "secrets" else "s3")
    one = Try(tmp_path, login(cloud, tmp_path), cloud.url(), "DIR")
    begun.append(one)
    assert "Ctrl-C ends it" in one.line()
    (folder,) = [path for path in (one.state / "mount-sidecar").iterdir() if path.is_dir()]
    assert one.end()[0] == EXIT_OK
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("what nobody may change")
    folder.mkdir()
    (folder / name).symlink_to(outside if name in ("secrets", "state") else outside / "file")
    again = Try(tmp_path, login(cloud, tmp_path), cloud.url(), "DIR")
    begun.append(again)
    while "Ctrl-C ends it" not in (line := again.line()):
        assert "it is kept as" in line
    assert again.end()[0] == EXIT_OK
    assert [file.name for file in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "what nobody may change"


def test_a_link_in_place_of_its_folder_is_refused(tmp_path: Path, begun: list[Try]) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "state/mount-sidecar").symlink_to(tmp_path / "outside")
    one = Try(tmp_path, {}, "s3://bucket", "DIR")
    begun.append(one)
    assert "mount-sidecar` is a symbolic link" in one.line()
    assert one.process.wait(DEADLINE_S) == EXIT_USAGE
    assert os.listdir(tmp_path / "outside") == []


def test_nothing_can_be_kept(tmp_path: Path, begun: list[Try]) -> None:
    (tmp_path / "state").touch()
    one = Try(tmp_path, {}, "s3://bucket", "DIR")
    begun.append(one)
    assert re.match(
        rf"error SC1001 USAGE: cannot use `{tmp_path}/state/mount-sidecar/\w+`: "
        rf"`{tmp_path}/state` is a file",
        one.line(),
    )
    assert one.process.wait(DEADLINE_S) == EXIT_USAGE


@pytest.mark.parametrize("other_url", ["s3://another-bucket", None])
def test_two_at_one_directory_are_refused(
    s3: Cloud, tmp_path: Path, begun: list[Try], other_url: str | None
) -> None:
    one = Try(tmp_path, login(s3, tmp_path), s3.url(), "DIR")
    begun.append(one)
    assert "Ctrl-C ends it" in one.line()
    other = Try(tmp_path, login(s3, tmp_path), other_url or s3.url(), "DIR")
    begun.append(other)
    assert other.line().startswith(f"error SC1001 USAGE: `{one.directory}` has a bucket already")
    assert other.process.wait(DEADLINE_S) == EXIT_USAGE
    assert os.listdir(one.directory) == []
    assert one.end()[0] == EXIT_OK


@pytest.mark.parametrize("read_only", [True, False])
def test_the_entry_that_it_explains_declares_the_same(read_only: bool, tmp_path: Path) -> None:
    url = "wasbs://container@account.blob.core.windows.net/prefix"
    command = [sys.executable, "-m", "sidecar", "try", url, str(tmp_path), "--explain"]
    command += ["--option", "partBytes=9Mi", "--option", "profile=serving"]
    command += ["--option", "warmRead=[index, 'train/**']"]
    command += ["--read-only"] if read_only else []
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kind: Kind = "data" if read_only else "outputs"
    [volume] = getattr(parse_catalogue(text, "explained"), kind)
    assert (volume.name, volume.read_only) == ("name", read_only)
    assert volume.options == {
        "partBytes": 9 * MIB,
        "profile": "serving",
        "warmRead": ("index", "train/**"),
    }
    assert isinstance(volume.source, StoreSource)
    assert (volume.source.store, volume.source.url) == ("azure", url)


@pytest.mark.parametrize("value", ["[a", "[a, 7]", "a", "[../a]"])
def test_a_list_that_is_none_is_one_line(value: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sidecar", "try", "s3://b", str(tmp_path), "--explain"]
    done = subprocess.run(
        [*command, "--option", f"warmRead={value}"], capture_output=True, text=True, check=False
    )
    assert re.fullmatch(r"error SC10(01|27) \w+: --option[ .]warmRead: must be .*\n", done.stderr)
