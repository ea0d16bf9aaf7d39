"""Patterns of files, as in a shell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.mounter.warming.patterns import base, compiled


@pytest.mark.parametrize(
    ("pattern", "matches", "does_not"),
    [
        ("a.idx", ["a.idx"], ["b/a.idx", "aXidx", "a.idx.bak"]),
        ("*.idx", ["a.idx", ".idx"], ["b/a.idx"]),
        ("train/*", ["train/a"], ["train", "train/b/c", "trainx/a"]),
        ("**/*.tar", ["a.tar", "b/a.tar", "b/c/a.tar"], ["a.tar/x"]),
        ("train/**", ["train/a", "train/b/c"], ["test/a"]),
        ("train/**/x?", ["train/xy", "train/a/b/xy"], ["train/x", "train/x/y"]),
        ("shard-[0-3].tar", ["shard-2.tar"], ["shard-7.tar", "shard-/.tar"]),
        ("[!a]b", ["cb"], ["ab", "/b"]),
        ("[9-0]", ["5"], ["x"]),
        ("a[", ["a["], ["a"]),
        ("(x)+$", ["(x)+$"], ["xx"]),
        ("é*", ["é1"], ["e1"]),
    ],
)
def test_patterns(pattern: str, matches: list[str], does_not: list[str]) -> None:
    match = compiled(pattern).fullmatch
    assert [path for path in matches if not match(path)] == []
    assert [path for path in does_not if match(path)] == []


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [("a", ""), ("a/b", "a"), ("a/*/c", "a"), ("*", ""), ("a/b/c[0]", "a/b"), ("**", "")],
)
def test_where_to_look(pattern: str, folder: str) -> None:
    assert base(pattern) == folder


@given(st.text(min_size=1))
def test_any_text_is_a_pattern(text: str) -> None:
    compiled(text).fullmatch("a/b")
    base(text)
