"""Threads in several processes that start together; the benchmarks' clients are built on it.

Threads of one Python process take turns (the GIL), so they are spread over a few forked
processes. Starting them is not measured.
"""

from __future__ import annotations

import http.client
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import TypeVar

_START_TIMEOUT_S = 60.0

Item = TypeVar("Item")


class CrewFailure(Exception):
    """An item failed; the message says why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The work of a crew, from the start signal until its last thread ended.

    Attributes:
        operations: items done.
        size_bytes: bytes that all items moved.
        cpu_s: user and system time of all its processes.
    """

    operations: int
    size_bytes: int
    wall_s: float
    cpu_s: float


def run(
    make: Callable[[], Callable[[Item], int]],
    items: Sequence[Item],
    *,
    threads: int,
    processes: int = 1,
    duration_s: float | None = None,
) -> Outcome:
    """Do each item once, in order, until none is left or time is up.

    Args:
        make: called once in each thread; returns the function that does one item and returns
            its number of bytes.
        items: dealt to the processes in turn; the threads of a process share its items.
        threads: in all processes; a multiple of ``processes``.

    Raises:
        CrewFailure: an item raised OSError or HTTPException.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes + 1)
    pipes = []
    members = []
    for number in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        share = list(items[number::processes])[::-1]  # pop() takes from the end, and is atomic.
        member = context.Process(
            target=_member,
            args=(make, share, threads // processes, duration_s, barrier, theirs),
            daemon=True,
        )
        member.start()
        theirs.close()
        pipes.append(ours)
        members.append(member)
    barrier.wait(_START_TIMEOUT_S)
    began_s = time.perf_counter()
    results = [_receive(pipe) for pipe in pipes]
    for member in members:
        member.join()
    return Outcome(
        operations=sum(result.operations for result in results),
        size_bytes=sum(result.size_bytes for result in results),
        # CLOCK_MONOTONIC is one clock for all processes.
        wall_s=max(result.wall_s for result in results) - began_s,
        cpu_s=sum(result.cpu_s for result in results),
    )


def _receive(pipe: Connection) -> Outcome:
    try:
        result = pipe.recv()
    except EOFError:
        raise CrewFailure("a process of the client ended early") from None
    if isinstance(result, str):
        raise CrewFailure(result)
    assert isinstance(result, Outcome)
    return result


def _member(
    make: Callable[[], Callable[[Item], int]],
    share: list[Item],
    threads: int,
    duration_s: float | None,
    barrier: Barrier,
    pipe: Connection,
) -> None:
    """One process. Its Outcome has the time of its end as ``wall_s``, not a duration."""
    counts: list[tuple[int, int]] = []
    failures: list[str] = []
    barrier.wait(_START_TIMEOUT_S)
    cpu_s = time.process_time()
    end_s = time.perf_counter() + duration_s if duration_s is not None else float("inf")

    def work() -> None:
        operations = size_bytes = 0
        try:
            do = make()
            while not failures and time.perf_counter() < end_s:
                try:
                    item = share.pop()
                except IndexError:
                    break
                size_bytes += do(item)
                operations += 1
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{type(error).__name__}: {error}")
        counts.append((operations, size_bytes))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        pipe.send(failures[0])
        return
    pipe.send(
        Outcome(
            operations=sum(count for count, _ in counts),
            size_bytes=sum(size for _, size in counts),
            wall_s=time.perf_counter(),
            cpu_s=time.process_time() - cpu_s,
        )
    )
