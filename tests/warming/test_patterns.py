"""Patterns of files, as in a shell."""

from __future__ import annotations

import re

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


def plainly(pattern: str, path: str) -> bool:
    """What it means, without care for time."""
    *folders, name = [re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split("/")]
    many = re.escape("**").replace(r"\*", "[^/]*")
    expression = "".join("(?:[^/]+/)*" if one == many else f"{one}/" for one in folders)
    return bool(re.fullmatch(expression + (".*" if name == many else name), path, re.DOTALL))


@given(st.text("ab*/", min_size=1, max_size=12), st.text("ab/", min_size=1, max_size=12))
def test_stars_mean_what_they_say(pattern: str, path: str) -> None:
    assert bool(compiled(pattern).fullmatch(path)) == plainly(pattern, path)


@pytest.mark.parametrize(
    "pattern",
    [
        "*a" * 25 + "x",
        "**/" * 25 + "x",
        "**/*a*a/" * 25 + "x",
        "*" * 1000 + "x",
        "**/a*/" * 25 + "x",
    ],
)
def test_a_pattern_of_many_stars_is_answered(pattern: str) -> None:
    """It took longer than any start may, for one long name."""
    match = compiled(pattern).fullmatch
    assert not match("a" * 255)
    assert not match("aaaa/" * 150 + "b")
