"""Every allowed difference is in SEMANTICS.md."""

from __future__ import annotations

from pathlib import Path

from tests.writing.differences import Allowed


def test_every_difference_is_a_paragraph() -> None:
    text = (Path(__file__).parents[2] / "SEMANTICS.md").read_text()
    for difference in Allowed:
        assert f"\n### {difference.value}\n" in text
