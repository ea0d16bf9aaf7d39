"""When the worker lets the kernel open files without asking it (ENOSYS to OPEN)."""

from __future__ import annotations

from sidecar.mounter.fuse.open_policy import JUDGED_OPENS, WORTH_BYTES, OpenPolicy
from sidecar.mounter.store.interface import ObjectInfo


def answers(
    opens: OpenPolicy, size_bytes: int, times: int, *, others_open: bool = False
) -> list[bool]:
    info = ObjectInfo("k", size_bytes, 0.0, "v")
    return [opens.is_answered(info, others_open=others_open) for _ in range(times)]


def test_small_files_are_opened_by_the_kernel_once_there_were_many() -> None:
    opens = OpenPolicy(needed=False, by_copy=True)
    assert answers(opens, 100_000, JUDGED_OPENS) == [True] * (JUDGED_OPENS - 1) + [False]
    # The kernel does not ask again, whatever is opened.
    assert answers(opens, 100 * WORTH_BYTES, 2 * JUDGED_OPENS) == [False] * (2 * JUDGED_OPENS)


def test_nothing_is_given_away_while_a_file_is_open() -> None:
    opens = OpenPolicy(needed=False, by_copy=True)
    assert all(answers(opens, 100, 2 * JUDGED_OPENS, others_open=True))
    assert answers(opens, 100, 1) == [False]


def test_large_files_are_always_answered() -> None:
    opens = OpenPolicy(needed=False, by_copy=True)
    assert all(answers(opens, WORTH_BYTES, 3 * JUDGED_OPENS))


def test_a_few_large_ones_among_small_ones_count_by_their_bytes() -> None:
    opens = OpenPolicy(needed=False, by_copy=True)
    assert all(answers(opens, 10 * WORTH_BYTES, JUDGED_OPENS // 5))
    assert all(answers(opens, 1000, JUDGED_OPENS))


def test_without_a_disk_cache_nothing_is_answered() -> None:
    assert not any(answers(OpenPolicy(needed=False, by_copy=False), 100 * WORTH_BYTES, 3))
