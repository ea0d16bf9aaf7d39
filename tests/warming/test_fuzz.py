"""Logs of reads and near blocks that nobody of ours wrote: right, or known to be wrong."""

from __future__ import annotations

import contextlib
import json

import pytest

from sidecar.mounter.cache import near_block
from sidecar.mounter.cache.near_block import BlockName
from sidecar.mounter.reading import read_log
from tests.store.mutations import Mutator

LENGTHS = [
    pytest.param(5_000, id="short"),
    pytest.param(1_000_000, id="soak", marks=[pytest.mark.soak, pytest.mark.timeout(3600)]),
]
LOGS = [
    json.dumps({"version": 1, "block_bytes": 131072, "keys": ["a", "b/c"], "runs": runs}).encode()
    for runs in ([[0, 0, 1], [1, 7, 3]], [], [[1, 2**40, 2**40]])
]
WORDS = [b"[", b"]", b"{", b"}", b'"runs"', b'"keys"', b"1e999", b"NaN", b"-1", b"../", b"null"]
BLOCK = BlockName("ef" * 32, 1, 1000)
CONTENT = memoryview(bytes(range(250)) * 4)


@pytest.mark.parametrize("inputs", LENGTHS)
def test_logs_of_reads(inputs: int) -> None:
    mutator = Mutator(LOGS, WORDS, rb"[\[,:](\d+)", 1)
    for _ in range(inputs):
        text = mutator.next()
        with contextlib.suppress(ValueError):
            for run in read_log.parse(text):
                assert 0 <= run.start < run.end <= 1 << 62
                assert ".." not in run.key.split("/")


@pytest.mark.parametrize("inputs", LENGTHS)
def test_near_blocks(inputs: int) -> None:
    good = BLOCK.pack(CONTENT)
    samples = [good, near_block.claim(1.0)]
    mutator = Mutator(samples, [b"claimed1", bytes(8)], rb"(claimed1)", 2)
    into = memoryview(bytearray(len(CONTENT)))
    for _ in range(inputs):
        found = mutator.next()
        near_block.claim_expires_s(memoryview(found))
        stored = memoryview((found + bytes(len(good)))[: len(good)])
        if BLOCK.unpack(stored, 0, into):
            assert into == CONTENT
