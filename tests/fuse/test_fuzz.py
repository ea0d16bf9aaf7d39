"""Many malformed requests: each complete frame gets one answer, and memory does not grow.

``make test`` sends 20,000 frames, ``make soak`` 1,000,000.
"""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Sequence
from errno import EINTR
from pathlib import Path

import pytest

from sidecar.mounter.fuse.protocol import Opcode
from sidecar.units import MIB
from tests.fuse.mutations import Requests, mutated
from tests.fuse.served import PATIENCE_S, Served

SHORT_FRAMES = 20_000
SOAK_FRAMES = 1_000_000
SOAK_SEEDS = 4
MUTATED_SHARE = 0.7
IN_FLIGHT = 32
"""The kernel also has a limit: MAX_BACKGROUND, and one request for each waiting thread."""
SETTLED_AFTER = 10_000
"""Frames after which all buffers have been allocated."""
GROWTH_BYTES = 32 * MIB
"""Allowed growth after that: inodes, names and objects of new files."""
_UNANSWERED = {Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY}


def is_answered(request: bytes) -> bool:
    """Whether the protocol requires an answer to a frame."""
    whole = len(request) >= 40 and int.from_bytes(request[:4], "little") == len(request)
    return whole and opcode_of(request) not in _UNANSWERED


def opcode_of(request: bytes) -> int:
    return int.from_bytes(request[4:8], "little")


def unique_of(request: bytes) -> int:
    return int.from_bytes(request[8:16], "little")


class Fuzzer:
    """Sends mutated requests to a server and checks the answers.

    Attributes:
        outcomes: number of answers by (opcode, errno).
    """

    def __init__(self, served: Served, seed: int) -> None:
        self._served = served
        self._requests = Requests(seed)
        self.outcomes: Counter[tuple[int, int]] = Counter()
        self._interrupted: set[int] = set()

    def run(self, frames: int) -> None:
        for _ in range(0, frames, IN_FLIGHT):
            self._exchange([self._make() for _ in range(IN_FLIGHT)])

    def _make(self) -> bytes:
        unique = self._served.fresh_unique()
        if (due := self._requests.due(unique)) is not None:
            return due
        request = self._requests.valid(unique)
        rng = self._requests.random
        return mutated(request, rng) if rng.random() < MUTATED_SHARE else request

    def _exchange(self, requests: Sequence[bytes]) -> None:
        unsent = list(requests)
        expected = {unique_of(one): one for one in requests if is_answered(one)}
        self._interrupted |= {
            int.from_bytes(one[40:48], "little")
            for one in requests
            if opcode_of(one) == Opcode.INTERRUPT
        }
        connection = self._served.socket
        poll = select.poll()  # select(2) takes descriptors below 1024 only.
        while unsent or expected:
            poll.register(connection, select.POLLIN | (select.POLLOUT if unsent else 0))
            events = sum(event for _, event in poll.poll(PATIENCE_S * 1000))
            readable, writable = events & select.POLLIN, events & select.POLLOUT
            assert readable or writable, f"never answered: {list(expected.values())}"
            if readable and (answer := self._served.receive_one()) is not None:
                request = expected.pop(answer.unique, None)
                if request is not None:
                    self._check(request, answer.errno, answer.body)
                else:
                    # The answer to an interrupt; the kernel ignores it (ENOENT) if it is late.
                    assert answer.unique in self._interrupted, f"an answer to no request: {answer}"
                    assert answer.errno == EINTR
            if writable:
                connection.send(unsent.pop())

    def _check(self, request: bytes, errno: int, body: bytes) -> None:
        opcode = opcode_of(request)
        self.outcomes[opcode, errno] += 1
        if errno:
            return
        self._requests.learn(opcode, body)
        if opcode in (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS):
            asked = int.from_bytes(request[56:60], "little")
            assert len(body) <= min(asked, MIB)


def fuzz(state: Path, seed: int, frames: int) -> tuple[Counter[tuple[int, int]], list[int]]:
    """Outcomes, and the server's resident bytes: at first, after SETTLED_AFTER, at the end."""
    with Served(state) as served:
        assert served.ask(Opcode.STATFS).errno == 0
        resident = [served.resident_bytes()]
        fuzzer = Fuzzer(served, seed)
        fuzzer.run(SETTLED_AFTER)
        resident.append(served.resident_bytes())
        fuzzer.run(frames - SETTLED_AFTER)
        resident.append(served.resident_bytes())
        assert served.ask(Opcode.STATFS).errno == 0, "the server does not serve any more"
    assert "Traceback" not in served.log
    return fuzzer.outcomes, resident


def check(outcomes: Counter[tuple[int, int]], resident: list[int], frames: int) -> None:
    succeeded = {opcode for opcode, errno in outcomes if errno == 0}
    assert len(succeeded) >= 20, "too few opcodes succeeded"
    assert sum(outcomes.values()) > frames / 2
    assert resident[-1] - resident[1] < GROWTH_BYTES


def test_mutated_requests_never_end_the_server(tmp_path: Path) -> None:
    outcomes, resident = fuzz(tmp_path, 1, SHORT_FRAMES)
    check(outcomes, resident, SHORT_FRAMES)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 2 + SOAK_SEEDS))
def test_a_million_mutated_requests(tmp_path: Path, seed: int) -> None:
    frames = SOAK_FRAMES // SOAK_SEEDS
    outcomes, resident = fuzz(tmp_path, seed, frames)
    print(f"seed {seed}: {frames} frames, {sum(outcomes.values())} answers, resident {resident}")
    check(outcomes, resident, frames)
