"""YAML and JSON: ambiguities that parsers resolve silently are refused, with their line."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sidecar.control.catalogue.yaml_document import parse_documents
from sidecar.errors import CatalogueInvalid


def parse(text: str) -> object:
    (value,) = parse_documents(text, "doc", CatalogueInvalid)
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: b", {"a": "b"}),
        ("a: 2020-01-01", {"a": "2020-01-01"}),
        ("a: [1, 1.5, yes, ~, 'yes']", {"a": [1, 1.5, True, None, "yes"]}),
        ("b: 1\na: 2", {"b": 1, "a": 2}),
        ('{\t"a":\t"\\/\\ud83d\\ude00"}', {"a": "/\N{GRINNING FACE}"}),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}", {"x": {"a": 1, "b": 2}, "y": {"a": 1, "b": 3}}),
        (
            "x: &x {a: 1}\nw: &w {a: 2}\ny: {<<: [*x, *w]}",
            {"x": {"a": 1}, "w": {"a": 2}, "y": {"a": 1}},
        ),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse(text) == value
    assert json.dumps(parse(text)) == json.dumps(value)  # the order, too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "doc: line 3: the key `a` appears twice in one mapping"),
        ('{"a": 1,\n\t"a": 3}', "doc: line 2: the key `a` appears twice in one mapping"),
        ("a: [1", "doc: line 1: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: &a [*a]", "doc: line 1: an alias refers to what contains it"),
        ("1: a", "doc: line 1: a key must be a string: put it in quotes"),
        ("yes: a", "doc: line 1: a key must be a string: put it in quotes"),
        ("? [a]\n: b", "doc: line 1: a key must be a string"),
        ('"a\\e": b', "doc: line 1: a key has a character that cannot be printed"),
        ("a: !!int x", "doc: line 1: not a number"),
        ("a: !!python/name:os.system", "doc: line 1: the tag"),
        ('a: "\\ud800"', "doc: line 1: a string is not valid Unicode"),
        ("a: b\0", "doc: not valid YAML: it holds a character that YAML does not allow"),
        ("a: " + "[" * 5000, "doc: nested too deeply"),
        ("y: {<<: 1}", "doc: line 1: `<<` takes a mapping or a list of mappings"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(CatalogueInvalid) as caught:
        parse(text)
    assert caught.value.message.startswith(message)


def aliases_to_aliases(levels: int) -> str:
    """As many values as the next power of two says."""
    lines = (f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels))
    return "\n".join(["a0: &a0 [x]", *lines])


def test_what_aliases_repeat_counts() -> None:
    """Whatever looks at the values, or writes them, meets each as often as it is repeated."""
    assert isinstance(parse(aliases_to_aliases(12)), dict)
    with pytest.raises(CatalogueInvalid, match="too large, with what its aliases repeat"):
        parse(aliases_to_aliases(60))
    with pytest.raises(CatalogueInvalid, match="too large, with what its aliases repeat"):
        parse(f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 1000}]")


def test_what_surrounds_an_error_is_not_quoted() -> None:
    with pytest.raises(CatalogueInvalid) as caught:
        parse("postgresqlPassword: hunter2canary\nx: [")
    assert "canary" not in str(caught.value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(min_size=1, max_size=20).filter(str.isprintable), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(deadline=None)
@given(plain, st.sampled_from([None, 2, "\t"]), st.booleans())
def test_json_is_read_as_json(value: object, indent: int | str | None, ascii_only: bool) -> None:
    text = json.dumps({"value": value}, indent=indent, ensure_ascii=ascii_only)
    # JSON allows some raw control characters that YAML 1.1 allows as escapes only.
    assume(ascii_only or all(ch.isprintable() for ch in json.dumps(value, ensure_ascii=False)))
    assert parse(text) == {"value": value}
