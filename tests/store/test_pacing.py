"""The pace of requests, in virtual time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.fleet import UNPACED, Fleet, simulate
from sidecar.errors import NotFound, Unavailable
from sidecar.mounter.store.http import pacing
from sidecar.mounter.store.http.pacing import Pacing
from sidecar.mounter.store.http.retry import Retry, Retryable
from tests.support.clouds import CountingObserver


def sent(pace: Pacing, now_s: float, count: int) -> float:
    """So many requests come at once: how long the last one waits."""
    return max(pace.delay_s(now_s) for _ in range(count))


def test_nothing_waits_before_the_store_refuses_something() -> None:
    pace = Pacing()
    assert sent(pace, 10.0, 100_000) == 0.0


def test_a_refusal_leaves_four_fifths_of_what_there_was() -> None:
    pace = Pacing()
    for step in range(201):
        pace.delay_s(10.0 + step / 100)  # a hundred a second
    pace.refused(12.0)
    assert sent(pace, 12.0, 41) == pytest.approx(0.5, rel=0.05)


def test_refusals_of_requests_in_flight_are_one() -> None:
    pace = Pacing()
    for step in range(201):
        pace.delay_s(10.0 + step / 100)
    for _ in range(50):
        pace.refused(12.5)
    assert sent(pace, 12.5, 81) == pytest.approx(1.0, rel=0.05)


def test_the_rate_grows_until_nothing_waits_any_more() -> None:
    pace = Pacing()
    for step in range(201):
        pace.delay_s(10.0 + step / 100)
    pace.refused(12.0)
    assert sent(pace, 20.0, 200) < 200 / 80
    assert sent(pace, 100.0, 10_000) == 0.0


def test_a_first_refusal_at_once_does_not_stop_a_mount() -> None:
    """What was measured in a few milliseconds says enough."""
    pace = Pacing()
    sent(pace, 10.0, 50)
    pace.refused(10.02)
    assert pace.delay_s(10.02) == 0.0
    assert pace.delay_s(10.02) < 0.01


class Login:
    epoch = 0

    def refresh(self, seen_epoch: int, *, rejected: bool = False) -> bool:
        raise AssertionError(seen_epoch)


@pytest.mark.parametrize(("operation", "is_held"), [("head", True), ("put", False)])
def test_a_store_that_is_asked_too_much_is_asked_less(operation: str, is_held: bool) -> None:
    """The pace of reads is not that of writes."""
    observer = CountingObserver()
    retry = Retry(20.0, Login(), observer)
    refusals = iter([Retryable(Unavailable("slow down", "wait"), "throttled")])

    def attempt() -> None:
        for refusal in refusals:
            raise refusal

    retry.run("get", attempt)
    backed_off_s = observer.throttled_s
    assert backed_off_s > 0
    for _ in range(5):
        retry.run(operation, attempt)
    assert (observer.throttled_s > backed_off_s) == is_held
    assert observer.retries == [("get", "throttled")]


def test_who_has_no_time_is_not_held() -> None:
    observer = CountingObserver()
    retry = Retry(0.0, Login(), observer)

    def attempt() -> None:
        raise Retryable(Unavailable("slow down", "wait"), "throttled")

    for _ in range(3):
        with pytest.raises(Unavailable):
            retry.run("get", attempt)
    assert observer.throttled_s == 0.0


def refused() -> None:
    raise Retryable(Unavailable("slow down", "wait"), "throttled")


def missing() -> None:
    raise NotFound("no such object")


@contextlib.contextmanager
def answering(
    retry: Retry, operation: str = "get", answer: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """The store takes other requests of this mount meanwhile."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.02):
            with contextlib.suppress(NotFound):
                retry.once(operation, answer)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("answer", [lambda: None, missing], ids=["here", "absent"])
def test_a_store_that_takes_other_requests_is_not_out(answer: Callable[[], None]) -> None:
    """A request that happens to be refused again and again is no error yet."""
    retry = Retry(0.3, Login(), CountingObserver())
    end_s = time.monotonic() + 1.0

    def attempt() -> str:
        if time.monotonic() < end_s:
            refused()
        return "taken"

    with answering(retry, answer=answer):
        assert retry.run("head", attempt) == "taken"


def test_a_store_that_takes_writes_may_be_out_for_reads() -> None:
    observer = CountingObserver()
    retry = Retry(0.3, Login(), observer)
    with answering(retry, "put"), pytest.raises(Unavailable):
        retry.run("head", refused)
    assert observer.throttled_s <= 0.3


def test_a_request_that_is_refused_for_ten_times_as_long_is_an_error() -> None:
    retry = Retry(0.2, Login(), CountingObserver())
    began_s = time.monotonic()
    with answering(retry), pytest.raises(Unavailable):
        retry.run("head", refused)
    assert time.monotonic() - began_s >= 0.5


def test_a_store_that_refuses_everything_is_out_after_the_budget() -> None:
    observer = CountingObserver()
    retry = Retry(0.5, Login(), observer)
    retry.run("get", lambda: None)
    with pytest.raises(Unavailable):
        retry.run("head", refused)
    assert observer.throttled_s < 2


def test_no_request_waits_for_longer_than_a_retry_does() -> None:
    pace = Pacing()
    pace.delay_s(10.0)
    pace.refused(10.0)
    assert sent(pace, 10.0, 1_000) == pacing.MOST_DELAY_S


@pytest.mark.parametrize(
    "fleet",
    [
        Fleet(rate=1_100),
        Fleet(mounts=1, threads=64, rate=1_000),
        Fleet(mounts=8, rate=200),
        Fleet(mounts=100, threads=8, rate=1_100),
    ],
    ids=["32", "1", "8, a low rate", "100"],
)
def test_a_fleet_gets_what_a_prefix_allows_in_fair_shares(fleet: Fleet) -> None:
    found = simulate(fleet)
    allowed = fleet.rate * (fleet.seconds - fleet.settling_s)
    assert sum(found.answered) >= 0.9 * allowed
    assert found.slowest >= 0.5


def test_less_is_asked_in_vain_than_by_the_back_off_alone() -> None:
    with_pacing, without = (
        simulate(Fleet(rate=1_100)),
        simulate(Fleet(rate=1_100, client=UNPACED)),
    )
    assert with_pacing.refused < without.refused / 2


def test_no_storm_after_an_outage() -> None:
    fleet = Fleet(rate=1_100, seconds=80.0, outage=(25.0, 55.0))
    assert (
        max(simulate(fleet).sent[55:]) <= 3 * fleet.rate
    )  # the burst that the prefix allows, and a second's requests
