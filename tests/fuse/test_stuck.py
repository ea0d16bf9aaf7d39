"""Which threads of this process stand still over a request."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import pytest

from sidecar.mounter.fuse import stuck
from sidecar.mounter.fuse.stuck import StuckThreads

LOOKS = 6
MODULE = "def call(function):\n    return function()\n"


def in_module(name: str) -> Callable[[Callable[[], object]], object]:
    """A function of a module of that name, which calls another one."""
    names: dict[str, object] = {"__name__": name}
    exec(MODULE, names)
    call: Callable[[Callable[[], object]], object] = names["call"]  # type: ignore[assignment]
    return call


at_store = in_module("sidecar.mounter.store.s3.requests")
at_names = in_module("sidecar.mounter.filesystem.inodes.namespace")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck, "_STUCK_S", 1.0)


class Pool:
    """Threads that serve, and what they all wait for."""

    def __init__(self) -> None:
        self.threads = ThreadPoolExecutor(4)
        self.over = threading.Event()

    def wait(self) -> None:
        self.over.wait()


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.over.set()
    pool.threads.shutdown()


def look(store_wait_s: float = 600.0) -> str | None:
    threads = StuckThreads((), store_wait_s)
    for _ in range(LOOKS):
        if why := threads.look():
            return why
        time.sleep(0.5)
    return None


def test_an_idle_process_is_not_stuck(pool: Pool) -> None:
    pool.threads.submit(int).result()
    assert look() is None


def test_a_thread_that_waits_for_a_lock_is_stuck(pool: Pool) -> None:
    pool.threads.submit(at_names, pool.wait)
    why = look()
    assert why is not None
    assert why.endswith("in sidecar.mounter.filesystem.inodes.namespace.call")


def test_while_a_thread_is_at_the_store_none_is_stuck(pool: Pool) -> None:
    pool.threads.submit(at_names, pool.wait)
    pool.threads.submit(at_store, pool.wait)
    assert look() is None


def test_what_the_store_calls_back_is_not_at_the_store(pool: Pool) -> None:
    pool.threads.submit(at_store, lambda: at_names(pool.wait))
    assert look() is not None


def test_at_the_store_for_longer_than_all_retries_is_stuck(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stuck, "_STORE_MARGIN_S", 0.0)
    pool.threads.submit(at_store, pool.wait)
    assert look(store_wait_s=1.5) is not None


def test_a_thread_that_gets_on_is_not_stuck(pool: Pool) -> None:
    def count() -> None:
        while not pool.over.wait(0.1):
            sum(range(10_000))

    pool.threads.submit(at_names, count)
    assert look() is None


def test_a_function_that_serves_makes_its_thread_busy(pool: Pool) -> None:
    thread = threading.Thread(target=pool.wait)
    thread.start()
    assert StuckThreads((), 1.0).look() is None
    threads = StuckThreads((Pool.wait,), 1.0)
    found = [threads.look() for _ in range(LOOKS) if not time.sleep(0.5)]
    assert any(found)
    pool.over.set()
    thread.join()


def test_nothing_is_collected_while_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `threading.local` that is collected needs the lock of threads, which it holds."""
    frames = sys._current_frames
    seen = []

    def current_frames() -> dict[int, FrameType]:
        seen.append(gc.isenabled())
        return frames()

    monkeypatch.setattr(sys, "_current_frames", current_frames)
    StuckThreads((), 1.0).look()
    assert seen == [False]
    assert gc.isenabled()
