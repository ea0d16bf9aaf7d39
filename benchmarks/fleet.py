"""Many mounts on one prefix of a store that answers SlowDown above a rate.

``python -m benchmarks.fleet`` starts real mounts on a strict S3 server on loopback: all read small
files at once, each as fast as it may; then the store is away for half a minute. ``--simulate`` runs
thousands of them with the product's own pacing and back-off in virtual time, and the same without
pacing.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import math
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click

from sidecar.backoff import Backoff
from sidecar.contract.options import Options
from sidecar.contract.spec import StoreSource, Volume
from sidecar.mounter.store.http.pacing import Pacing
from sidecar.mounter.store.http.retry import FIRST_DELAY_S, LONGEST_DELAY_S, THROTTLED_BUDGETS
from tests.support.sidecar import Sidecar
from tests.support.strict_server import StrictS3Server

S3_READS_PER_S: Final = 5_500
"""For a prefix. Source: "Best practices design patterns: optimizing Amazon S3 performance"."""
S3_MILLION_LISTS: Final = 5.0
"""US dollars. Source: "Amazon S3 pricing", us-east-1, LIST requests."""
PAGE_NAMES: Final = 1_000
_FILE_BYTES: Final = 1_000
_THREADS: Final = 8


# --- in virtual time ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Client:
    """How a mount repeats requests.

    Attributes:
        paced: by the product's own pacing.
        first_s, longest_s: of the back-off, which doubles.
        attempts: for one request, 0: no limit; after the last the program has an error.
        budget_s: a refusal after so long is an error, too.
        patient: THROTTLED_BUDGETS times as long, while the store takes other requests.
    """

    name: str
    paced: bool = False
    first_s: float = FIRST_DELAY_S
    longest_s: float = LONGEST_DELAY_S
    attempts: int = 0
    budget_s: float = math.inf
    patient: bool = False


OURS: Final = Client("mount-sidecar", paced=True, budget_s=Options().retry_s, patient=True)
UNPACED: Final = replace(OURS, name="mount-sidecar without pacing", paced=False)
MOUNTPOINT: Final = Client("mountpoint-s3", first_s=0.25, longest_s=20.0, attempts=10)
"""Ten attempts, "about a minute on average". Source: its change to the default of retries."""
GCSFUSE: Final = Client("gcsfuse", first_s=1.0, longest_s=30.0)
"""Twice as long each time up to 30 s, without an end. Source: its documentation of retries."""

CLIENTS: Final = (OURS, UNPACED, MOUNTPOINT, GCSFUSE)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A simulated fleet.

    Attributes:
        mounts, threads: each thread sends one request after the other.
        rate: requests per second that the prefix takes, with a burst of one second.
        round_trip_s: of one request; a fifth more or less.
        seconds: the duration; requests of the first ``settling_s`` are not counted.
        requests: after so many the thread has finished; 0: it goes on.
        start_s: the mounts begin at random moments within this time.
        outage: from when to when every request is refused without being counted by the prefix.
        client: of all mounts.
    """

    mounts: int = 32
    threads: int = 16
    rate: float = S3_READS_PER_S
    round_trip_s: float = 0.02
    seconds: float = 60.0
    settling_s: float = 20.0
    requests: int = 0
    start_s: float = 0.5
    outage: tuple[float, float] | None = None
    client: Client = OURS


@dataclass(slots=True)
class Outcome:
    """The result of a simulation.

    Attributes:
        answered: the number of answered requests of each mount.
        sent: requests in each second, refused ones included.
        refused: the number of refused requests.
        failed: the mounts in which a program had an error.
        finished_s: when each mount had all its answers, from its own start on.
    """

    answered: list[int]
    sent: list[int]
    refused: int
    failed: set[int]
    finished_s: list[float]

    @property
    def slowest(self) -> float:
        """The slowest mount's answers, as a share of the median."""
        return min(self.answered) / statistics.median(self.answered)


@dataclass(slots=True)
class _Request:
    """One request, however often it is sent; ``began_s``: None until it is first sent."""

    mount: int
    number: int
    backoff: Backoff
    began_s: float | None = None
    attempts: int = 0

    @classmethod
    def of(cls, client: Client, mount: int, number: int) -> _Request:
        return cls(mount, number, Backoff(client.first_s, client.longest_s, jitter=True))

    def may_be_sent_again(self, client: Client, now_s: float, answered_s: float) -> bool:
        """``answered_s``: when the store last took a request of this mount."""
        assert self.began_s is not None
        if client.attempts and self.attempts >= client.attempts:
            return False
        is_out = not client.patient or now_s - answered_s > client.budget_s
        return now_s - self.began_s < client.budget_s * (1 if is_out else THROTTLED_BUDGETS)


class _Simulation:
    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._dice = random.Random(seed)
        random.seed(seed)  # the back-off's
        self._pacings = [Pacing() for _ in range(fleet.mounts)]
        self._began_s = [self._dice.random() * fleet.start_s for _ in range(fleet.mounts)]
        self._left = [fleet.requests * fleet.threads for _ in range(fleet.mounts)]
        self._answered_s = [-math.inf] * fleet.mounts
        self._tokens, self._filled_s = fleet.rate, 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, str, _Request]] = []
        self.outcome = Outcome([0] * fleet.mounts, [0] * (int(fleet.seconds) + 1), 0, set(), [])

    def run(self) -> None:
        client = self._fleet.client
        for mount in range(self._fleet.mounts):
            for _ in range(self._fleet.threads):
                self._at(self._began_s[mount], "wanted", _Request.of(client, mount, 0))
        while self._events:
            now_s, _, what, request = heapq.heappop(self._events)
            if now_s > self._fleet.seconds:
                break
            if what == "wanted":
                delay_s = self._pacings[request.mount].delay_s(now_s) if client.paced else 0.0
                self._at(now_s + delay_s, "sent", request)
            elif what == "sent":
                self._send(request, now_s)
            elif what == "taken":
                self._answer(request, now_s)
            else:
                self._refuse(request, now_s, is_away=what == "away")

    def _at(self, when_s: float, what: str, request: _Request) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), what, request))

    def _send(self, request: _Request, now_s: float) -> None:
        fleet = self._fleet
        request.began_s = now_s if request.began_s is None else request.began_s
        request.attempts += 1
        self.outcome.sent[int(now_s)] += 1
        is_away = fleet.outage is not None and fleet.outage[0] <= now_s < fleet.outage[1]
        self._tokens = min(self._tokens + (now_s - self._filled_s) * fleet.rate, fleet.rate)
        self._filled_s = now_s
        is_taken = self._tokens >= 1 and not is_away
        self._tokens -= is_taken
        answer = "taken" if is_taken else "away" if is_away else "refused"
        self._at(now_s + fleet.round_trip_s * self._dice.uniform(0.8, 1.2), answer, request)

    def _answer(self, request: _Request, now_s: float) -> None:
        fleet, mount = self._fleet, request.mount
        self.outcome.answered[mount] += now_s > fleet.settling_s
        self._answered_s[mount] = now_s
        self._left[mount] -= 1
        if not self._left[mount]:
            self.outcome.finished_s.append(now_s - self._began_s[mount])
        if not fleet.requests or request.number + 1 < fleet.requests:
            self._at(now_s, "wanted", _Request.of(fleet.client, mount, request.number + 1))

    def _refuse(self, request: _Request, now_s: float, *, is_away: bool) -> None:
        fleet, mount = self._fleet, request.mount
        self.outcome.refused += 1
        if not is_away and fleet.client.paced:
            self._pacings[mount].refused(now_s)
        if request.may_be_sent_again(fleet.client, now_s, self._answered_s[mount]):
            self._at(now_s + request.backoff.next_s(), "wanted", request)
            return
        self.outcome.failed.add(mount)
        if not fleet.requests:  # its program goes on
            self._at(now_s, "wanted", _Request.of(fleet.client, mount, request.number + 1))


def simulate(fleet: Fleet, seed: int = 1) -> Outcome:
    """Run it. Deterministic for one seed."""
    simulation = _Simulation(fleet, seed)
    simulation.run()
    return simulation.outcome


def rows() -> Iterator[str]:
    """The table of ``--simulate``."""
    yield ("| fleet | client | of the allowed rate | slowest / median | refused | with an error |")
    yield "| --- | --- | --- | --- | --- | --- |"
    for fleet in (Fleet(), Fleet(mounts=1, threads=128), Fleet(mounts=1_000, seconds=100.0)):
        for client in CLIENTS:
            one = simulate(replace(fleet, client=client))
            allowed = fleet.rate * (fleet.seconds - fleet.settling_s)
            yield (
                f"| {fleet.mounts} mounts, {fleet.threads} requests each at a time | {client.name} "
                f"| {sum(one.answered) / allowed:.2f} | {one.slowest:.2f} "
                f"| {one.refused / sum(one.sent):.1%} | {len(one.failed)} |"
            )
    yield ""
    yield "| 30 s away, 32 mounts | requests in the first second after | later, a second |"
    yield "| --- | --- | --- |"
    for client in CLIENTS:
        one = simulate(Fleet(seconds=80.0, outage=(25.0, 55.0), client=client))
        later = statistics.median(one.sent[65:79])
        yield f"| {client.name} | {one.sent[55]} | {later:.0f} |"
    yield ""
    yield "1,000 pods start within a minute, and each lists a million names:"
    yield ""
    yield "| client | LISTs | US$ | median and last ready after s | pods that have an error |"
    yield "| --- | --- | --- | --- | --- |"
    for client in CLIENTS:
        listing = Fleet(
            mounts=1_000,
            threads=1,
            requests=1_000_000 // PAGE_NAMES,
            start_s=60.0,
            round_trip_s=0.1,
            seconds=1_200.0,
            client=client,
        )
        one = simulate(listing)
        dollars = sum(one.sent) / 1e6 * S3_MILLION_LISTS
        ready = sorted(one.finished_s) or [math.nan]
        yield (
            f"| {client.name} | {sum(one.sent):,} | {dollars:.2f} "
            f"| {statistics.median(ready):.0f}, {ready[-1]:.0f} | {len(one.failed)} |"
        )


# --- real mounts ----------------------------------------------------------------------------


class _Reader(threading.Thread):
    """Reads files through one mount, each once, in an order of its own, until it is told to end."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        super().__init__()
        self.files = 0
        self.failed: list[str] = []
        self._paths = [f"{folder}/{name}" for name in names]
        self._end = threading.Event()

    def run(self) -> None:
        """Read."""
        for path in itertools.takewhile(lambda _: not self._end.is_set(), self._paths):
            try:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    assert len(os.read(descriptor, 2 * _FILE_BYTES)) == _FILE_BYTES
                finally:
                    os.close(descriptor)
            except OSError as error:
                self.failed.append(f"{path}: {error}")
            self.files += 1

    def stop(self) -> None:
        """End after the present file."""
        self._end.set()
        self.join()


def measure(mounts: int, rate: float, seconds: float, files: int) -> Iterator[str]:
    """Lines about real mounts."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        server = stack.enter_context(StrictS3Server(folder / "server"))
        server.create_bucket("fleet")
        source = folder / "file"
        source.write_bytes(os.urandom(_FILE_BYTES))
        client = server.client()
        names = [f"{number:06}" for number in range(files)]
        for one in names:
            client.fput_object("fleet", f"train/{one}", str(source))
        secret = json.dumps({**server.credentials(), "AWS_ENDPOINT_URL": server.endpoint})
        nodes = [
            stack.enter_context(_node(folder / f"node{number}", secret)) for number in range(mounts)
        ]
        readers: list[list[_Reader]] = []
        for node in nodes:
            path = f"{node.spec.volumes[0].path}/train"
            os.listdir(path)
            order = random.sample(names, len(names))
            readers.append([_Reader(path, order[part::_THREADS]) for part in range(_THREADS)])
        server.pace(requests_per_s=rate)
        for reader in itertools.chain.from_iterable(readers):
            reader.start()
        try:
            time.sleep(seconds / 3)  # until they have found their pace
            server.reset_counts()
            before = [sum(one.files for one in group) for group in readers]
            time.sleep(seconds)
            each = [sum(one.files for one in group) for group in readers]
            each = [later - earlier for later, earlier in zip(each, before, strict=True)]
            counts = server.counts()
            refused = sum(counts.refusals.values())
            answered = sum(counts.requests.values()) - refused
            yield (
                f"{mounts} mounts, {rate:.0f} requests a second allowed: {answered / seconds:.0f} "
                f"answered ({answered / seconds / rate:.2f}), {refused / seconds:.0f} refused"
            )
            yield (
                f"files of each mount: median {statistics.median(each):.0f}, least {min(each)} "
                f"({min(each) / statistics.median(each):.2f}), most {max(each)}"
            )
            server.fault("error", code="ServiceUnavailable", times=None)
            time.sleep(30.0)
            server.reset()
            server.pace(requests_per_s=rate)
            sent = []
            for _ in range(10):
                server.reset_counts()
                time.sleep(1.0)
                sent.append(sum(server.counts().requests.values()))
            yield f"after 30 s of 503: requests in each second {sent}"
        finally:
            server.reset()
            for reader in itertools.chain.from_iterable(readers):
                reader.stop()
        failed = [line for group in readers for one in group for line in one.failed]
        yield f"reads that failed: {len(failed)}{': ' + failed[0] if failed else ''}"
        held = sum(node.metric("mount_sidecar_store_throttled_seconds_total") for node in nodes)
        yield f"requests were held back for {held:.0f} s together"


def _node(place: Path, secret: str) -> Sidecar:
    source = StoreSource(
        store="s3", url="s3://fleet", bucket="fleet", secret="fleet", secret_key="key.json"
    )
    volume = Volume(name="v", kind="data", path=str(place / "mount"), read_only=True, source=source)
    return Sidecar(place / "run", [volume], secrets={"fleet": secret})


@click.command()
@click.option("--simulate", "simulated", is_flag=True, help="In virtual time, no mounts.")
@click.option("--mounts", default=32, show_default=True)
@click.option("--rate", default=400.0, show_default=True, help="Requests a second of the prefix.")
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--files", default=5_000, show_default=True)
def main(simulated: bool, mounts: int, rate: float, seconds: float, files: int) -> None:
    """Print the results."""
    for line in rows() if simulated else measure(mounts, rate, seconds, files):
        click.echo(line)


if __name__ == "__main__":
    main()
