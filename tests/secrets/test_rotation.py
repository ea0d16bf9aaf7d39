"""A refresh reads a rotated secret; a broken one does not replace the last good one."""

import threading
from pathlib import Path

import pytest

from sidecar.errors import SecretKeyMissing, SecretNotJson
from sidecar.mounter.store.credentials import VolumeCredentials
from sidecar.mounter.store.s3.credentials import S3Credentials
from tests.secrets.secrets import source, write


def login(key: str) -> dict[str, object]:
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": f"secret-of-{key}"}


def test_current_keeps_and_refresh_reads(tmp_path: Path) -> None:
    write(tmp_path, login("one"))
    credentials = VolumeCredentials(source("s3"), str(tmp_path))
    first = credentials.current()
    assert first == S3Credentials("one", "secret-of-one")
    assert not credentials.refresh()
    write(tmp_path, login("two"))
    assert credentials.current() == first
    assert credentials.refresh()
    assert credentials.current() == S3Credentials("two", "secret-of-two")
    assert not credentials.refresh()


def test_a_broken_rotation_leaves_the_last_good_login(tmp_path: Path) -> None:
    write(tmp_path, login("one"))
    credentials = VolumeCredentials(source("s3"), str(tmp_path))
    first = credentials.current()
    write(tmp_path, "{")
    with pytest.raises(SecretNotJson):
        credentials.refresh()
    assert credentials.current() == first
    write(tmp_path, login("two"))
    assert credentials.refresh()


def test_a_wrong_secret_can_be_put_right(tmp_path: Path) -> None:
    write(tmp_path, {})
    credentials = VolumeCredentials(source("s3"), str(tmp_path))
    with pytest.raises(SecretKeyMissing):
        credentials.current()
    write(tmp_path, login("one"))
    assert credentials.current() == S3Credentials("one", "secret-of-one")


def test_readers_never_see_halves_of_two_versions(tmp_path: Path) -> None:
    write(tmp_path, login("k0"))
    credentials = VolumeCredentials(source("s3"), str(tmp_path))
    seen: list[tuple[str | None, str | None]] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            credentials.refresh()
            current = credentials.current()
            assert isinstance(current, S3Credentials)
            seen.append((current.access_key_id, current.secret_access_key))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 40):
        write(tmp_path, login(f"k{number}"))
    done.set()
    for reader in readers:
        reader.join()
    assert seen
    assert all(secret == f"secret-of-{key}" for key, secret in seen)
