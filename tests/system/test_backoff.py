"""The delays between retries."""

from __future__ import annotations

from sidecar.backoff import Backoff


def test_delays_double_up_to_the_longest_and_start_again_after_a_reset() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next_s() for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_jitter_draws_from_the_upper_half() -> None:
    delays = [Backoff(1.0, 5.0, jitter=True).next_s() for _ in range(200)]
    assert all(0.5 <= delay_s <= 1.0 for delay_s in delays)
    assert len(set(delays)) > 1
