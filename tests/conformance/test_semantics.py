"""SEMANTICS.md: every paragraph cites tests, every allowed difference cites a paragraph."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from tests.conformance.differences import DIFFERENCES
from tests.soak_tools.expected import EXPECTED

ROOT = Path(__file__).parents[2]


def test_every_paragraph_names_tests_that_exist() -> None:
    for heading, text in _paragraphs().items():
        proofs = _proofs(text)
        assert proofs, f"`{heading}` has no proof"
        for path, test in proofs:
            assert test in _tests_of(path), f"`{heading}`: there is no {path}::{test}"


def test_every_heading_has_a_number_of_its_own() -> None:
    numbers = [heading.split()[0] for heading in _paragraphs()]
    assert all(re.fullmatch(r"[A-Z]\d+", number) for number in numbers)
    assert len(numbers) == len(set(numbers))


def test_every_difference_cites_a_paragraph_that_its_test_proves() -> None:
    paragraphs = _paragraphs()
    for (test, transport), difference in DIFFERENCES.items():
        assert difference.paragraph in paragraphs, f"{test} on {transport}"
        proof = ("tests/conformance/" + test.partition("::")[0], test.partition("::")[2])
        assert proof in _proofs(paragraphs[difference.paragraph]), f"{test} on {transport}"


def test_every_finding_of_a_strict_tester_cites_a_paragraph() -> None:
    paragraphs = _paragraphs()
    assert [entry for entry in EXPECTED if entry.why not in paragraphs] == []


def test_every_difference_is_of_a_test_that_exists() -> None:
    for test, _transport in DIFFERENCES:
        path, _, name = test.partition("::")
        assert name.partition("[")[0] in _tests_of(f"tests/conformance/{path}")


def _paragraphs() -> dict[str, str]:
    """Heading to text."""
    parts = re.split(r"^### (.+)$", (ROOT / "SEMANTICS.md").read_text(), flags=re.MULTILINE)
    return {
        heading: re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def _proofs(text: str) -> list[tuple[str, str]]:
    """(file, test) of each test after ``Proof:``."""
    return re.findall(r"(tests/[\w/]+\.py)::(\w+)", text.partition("\nProof:")[2])


@cache
def _tests_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )
