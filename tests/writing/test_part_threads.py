"""Parts are sent in the order in which they were submitted, however many at a time."""

from __future__ import annotations

import threading
import time

from sidecar.mounter.writing.part_threads import PartThreads

PARTS = 3000


def test_a_part_that_waits_for_the_one_before_it_never_waits_for_ever() -> None:
    """As those of a store that takes parts in order only: whoever overtakes keeps its place."""
    threads = PartThreads(lambda _: None)
    sent = [threading.Event() for _ in range(PARTS + 1)]
    sent[0].set()

    def send(number: int) -> int:
        assert sent[number - 1].wait(300), f"part {number} waits for one that does not come"
        sent[number].set()
        return 0

    def submit(number: int) -> object:
        return threads.submit(lambda: send(number))

    deadline_s = time.monotonic() + 300
    for future in [submit(number) for number in range(1, PARTS + 1)]:
        future.result(max(0.0, deadline_s - time.monotonic()))  # type: ignore[attr-defined]
