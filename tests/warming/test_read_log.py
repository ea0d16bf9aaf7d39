"""The log of first reads: what is noted, and what anybody may have written in its place."""

from __future__ import annotations

import contextlib
import json
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.mounter.reading import read_log
from sidecar.mounter.reading.read_log import ReadLog, Run, parse
from sidecar.units import KIB, MIB


def noted(log: ReadLog) -> list[Run]:
    text = log.take()
    assert text is not None
    return parse(text.encode())


def test_first_reads_in_their_order_and_once() -> None:
    log = ReadLog(100 * MIB)
    for start in range(0, MIB, 128 * KIB):
        log.note("a", start, start + 128 * KIB)
    log.note("b/c", 5 * MIB + 7, 5 * MIB + 9)
    log.note("a", 0, 2 * MIB)
    log.note("a", 0, 2 * MIB)
    assert noted(log) == [
        Run("a", 0, MIB),
        Run("b/c", 5 * MIB, 5 * MIB + 128 * KIB),
        Run("a", MIB, 2 * MIB),
    ]
    assert log.take() is None
    log.note("a", 3 * MIB, 3 * MIB + 1)
    assert len(noted(log)) == 4


def test_a_log_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_log, "_MOST_RUNS", 100)
    monkeypatch.setattr(read_log, "_MOST_FILES", 50)
    dice = random.Random(1)
    log = ReadLog(1 << 40)
    for _ in range(1000):
        log.note(f"f{dice.randrange(1000)}", dice.randrange(1000) * MIB, 1001 * MIB)
    runs = noted(log)
    assert len(runs) <= 100 + 1
    assert len({run.key for run in runs}) <= 50
    small = ReadLog(MIB)
    for start in range(0, 10 * MIB, MIB):
        small.note("a", start, start + MIB)
    assert noted(small) == [Run("a", 0, MIB)]


def test_what_comes_late_is_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_log, "_WINDOW_S", 0.0)
    log = ReadLog(MIB)
    log.note("a", 0, 1)
    log.note("b", 0, 1)
    assert noted(log) == [Run("a", 0, 128 * KIB)]


GOOD = {"version": 1, "block_bytes": 4, "keys": ["a"], "runs": [[0, 1, 2]]}


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"block_bytes": "4"},
        {"block_bytes": "4", "runs": [[0, 2**40, 2**40]]},
        {"keys": ["../a"]},
        {"keys": ["/a"]},
        {"keys": ["a//b"]},
        {"keys": [7]},
        {"keys": 7},
        {"runs": [[1, 0, 1]]},
        {"runs": [[-1, 0, 1]]},
        {"runs": [[0, -1, 1]]},
        {"runs": [[0, 0, 0]]},
        {"runs": [[0, 0]]},
        {"runs": ["abc"]},
        {"runs": None},
    ],
)
def test_what_is_no_log(change: dict[str, object]) -> None:
    assert parse(json.dumps(GOOD).encode()) == [Run("a", 4, 12)]
    with pytest.raises(ValueError, match="no log of reads"):
        parse(json.dumps({**GOOD, **change}).encode())


HUGE = {
    "runs": b"[0,0,1],",
    "names": b'"a",',
    "folders": b"[],",
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_log_of_many_things_takes_little_memory(kind: str) -> None:
    """98 KB, packed, became 1.9 GiB."""
    content = b'{"version":1,"block_bytes":4,"keys":["a"],"runs":[' + HUGE[kind] * (8 * MIB)
    logs = [content[: length - 3] + b"1]}" for length in (read_log.MOST_BYTES, len(content))]
    tracemalloc.start()
    try:
        for log in logs:
            with pytest.raises(ValueError, match="no log of reads"):
                parse(log)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


def test_names_that_are_long_end_a_log_that_can_be_read() -> None:
    log = ReadLog(1 << 40)
    for number in range(6000):
        log.note(f"{number}/" + "\U0001f600" * 250, 0, 1)
    text = log.take()
    assert text is not None
    assert 1000 < len(parse(text.encode())) < 6000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.text() | JSON.map(json.dumps) | st.fixed_dictionaries(
    {"version": st.just(1), "block_bytes": JSON, "keys": JSON, "runs": JSON}
).map(json.dumps))  # fmt: skip
def test_any_text_is_a_log_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text.encode(errors="surrogatepass"))
