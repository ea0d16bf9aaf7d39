"""A directory in memory that no path leads to."""

from __future__ import annotations

import errno
import os

import pytest

from sidecar.mounter.system import memory_directory as module
from sidecar.mounter.system.memory_directory import memory_directory


def test_files_stay_while_somebody_has_it() -> None:
    first = memory_directory()
    second = os.dup(first)
    os.close(first)
    try:
        descriptor = os.open("file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=second)
        assert os.write(descriptor, b"content") == 7
        os.close(descriptor)
        assert os.listdir(second) == ["file"]
        assert os.stat("file", dir_fd=second).st_size == 7
        os.unlink("file", dir_fd=second)
        assert os.listdir(second) == []
    finally:
        os.close(second)


def test_no_path_leads_there() -> None:
    with open("/proc/self/mountinfo") as file:
        before = file.read()
    descriptor = memory_directory()
    with open("/proc/self/mountinfo") as file:
        assert file.read() == before
    os.close(descriptor)


def test_a_kernel_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    call = module._call

    def refuse(number: int, *arguments: bytes | int | None) -> int:
        if b"huge" in arguments:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return call(number, *arguments)

    monkeypatch.setattr(module, "_call", refuse)
    descriptor = memory_directory()
    assert os.listdir(descriptor) == []
    os.close(descriptor)
