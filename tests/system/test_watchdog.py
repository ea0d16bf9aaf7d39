"""Processes that give no sign of life: which of them hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.heartbeat import SharedBeats, beat_to
from sidecar.mounter.system.watchdog import STOPPED, Ticks, Watch, is_stopped
from tests.support.cgroups import new_cgroup
from tests.support.waiting import wait_until

MOST_TICKS = 12


def look(pid: int, *, beats: bool = True, ticks: int = MOST_TICKS) -> str | None:
    """What a watch says of a process within some ticks."""
    watch = Watch(pid, beats=beats)
    for _ in range(ticks):
        time.sleep(0.3)  # faster than the real ones
        if why := watch.tick(time.monotonic()):
            return why
    return None


@pytest.fixture
def sleeping() -> Iterator[int]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("beats", [True, False])
def test_a_stopped_process_hangs(sleeping: int, beats: bool) -> None:
    os.kill(sleeping, signal.SIGSTOP)
    wait_until(lambda: is_stopped(sleeping), "it is stopped")
    assert look(sleeping, beats=beats) == STOPPED


def test_a_process_that_does_nothing_hangs_if_it_should_beat(sleeping: int) -> None:
    assert look(sleeping) == "it does nothing and gives no sign of life"
    assert look(sleeping, beats=False) is None


def test_one_that_ended_does_not_hang() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert look(process.pid) is None


def test_one_that_runs_does_not_hang_so_soon() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        assert look(process.pid) is None
        process.kill()


def test_one_without_processor_time_does_not_hang() -> None:
    with new_cgroup("cpu") as group:
        group.limit(1)
        command = [sys.executable, "-c", "while True: pass"]
        with subprocess.Popen(command) as process:
            group.add(process.pid)
            assert look(process.pid) is None
            group.limit(None)
            process.kill()


def test_a_beat_is_another_chance(sleeping: int) -> None:
    watch = Watch(sleeping, beats=True)
    for _ in range(3 * MOST_TICKS):
        assert watch.tick(time.monotonic()) is None
        watch.beat()


def test_a_late_tick_is_noticed() -> None:
    ticks = Ticks()
    assert not ticks.is_due(ticks.due_s - 0.1)
    assert ticks.next(ticks.due_s)
    assert not ticks.next(ticks.due_s + 5)  # this process stood still itself
    assert ticks.next(ticks.due_s)


def test_beats_that_nobody_takes_are_not_sent() -> None:
    near, far = Channel.pair()
    channel = Channel(far)
    beat_to(channel)
    first = near.receive()
    assert first == ({"event": "beat", "hangs": ""}, [])
    time.sleep(3.5)
    received = 0
    while near.receive(wait=False) is not None:
        received += 1
    assert received == 1
    wait_until(lambda: near.receive(wait=False) is not None, "the next beat")
    near.close()
    wait_until(lambda: "heartbeat" not in {t.name for t in threading.enumerate()}, "its end")
    channel.close()


def test_beats_are_shared_with_forked_processes() -> None:
    beats = SharedBeats()
    pid = os.fork()
    if pid == 0:
        beats.beat(3)
        time.sleep(600)
        os._exit(0)
    try:
        wait_until(lambda: (beats.count(3) or 0) >= 2, "two beats")
        assert beats.count(2) == 0
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_that_finds_that_it_hangs_says_so() -> None:
    beats = SharedBeats()
    beats.beat(1, lambda: "a thread has stood still")
    wait_until(lambda: beats.count(1) is None, "it says so")
