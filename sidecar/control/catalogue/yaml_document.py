"""YAML and JSON text to plain values.

Only PyYAML's composer is used. Its constructor keeps the last of two equal keys, which would
silently drop a volume, turns ``2020-01-01`` into a date, and fails on some malformed scalars
with a bare ``ValueError`` or ``IndexError``.
"""

from __future__ import annotations

import json
from typing import TypeAlias

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from sidecar.errors import ConfigError

YamlValue: TypeAlias = "str | int | float | bool | list[YamlValue] | dict[str, YamlValue] | None"

_TAG = "tag:yaml.org,2002:"
_NUMBER_CHARS = 100
"""The longest number. Converting one to the base of 60 (``1:30``) takes time that grows with it."""
_MOST_CHARACTERS = 32_000_000
"""The longest document, with all that aliases and ``<<`` repeat. A few lines of aliases to aliases
would fill any memory."""
_OF_A_VALUE = 32
"""What each value counts, in characters, beside its own."""


def parse_documents(text: str, where: str, error: type[ConfigError]) -> list[YamlValue]:
    """Every document of a YAML stream (or the one of a JSON text).

    Args:
        text: YAML 1.1 or JSON.
        where: how messages name its origin, such as the file.
        error: the class to raise.

    Returns:
        One value for each document. Mappings keep their order, dates stay strings.

    Raises:
        ConfigError: of class ``error``. It names the line and never quotes the text, since
            Helm values may hold passwords.
    """
    if _is_json(text):
        # JSON allows tabs between tokens, YAML does not; inside JSON strings tabs are escaped.
        text = text.replace("\t", " ")
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        return [_Constructor(where, error).construct(node) for node in nodes if node is not None]
    except yaml.MarkedYAMLError as bad:
        line = f"line {bad.problem_mark.line + 1}: " if bad.problem_mark else ""
        problem = f"{where}: {line}not valid YAML: {bad.problem}"
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ):  # the last two come from escapes such as \UFFFFFFFF
        problem = f"{where}: not valid YAML: it holds a character that YAML does not allow"
    except RecursionError:
        problem = f"{where}: nested too deeply"
    raise error(problem)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class _Constructor:
    """Makes the values of one document from the composer's nodes."""

    def __init__(self, where: str, error: type[ConfigError]) -> None:
        self._where = where
        self._error = error
        # By node, with the number of values in it: an alias is its anchor's node again.
        self._values: dict[int, tuple[YamlValue, int]] = {}
        self._unfinished: set[int] = set()
        self._count = 0

    def construct(self, node: Node) -> YamlValue:
        """The value of ``node``."""
        key = id(node)
        if key in self._values:
            value, count = self._values[key]
            self._add(count, node)
            return value
        if key in self._unfinished:
            raise self._refusal(node, "an alias refers to what contains it")
        self._unfinished.add(key)
        before = self._count
        self._add(_OF_A_VALUE, node)
        if isinstance(node, MappingNode):
            value = self._mapping(node)
        elif isinstance(node, SequenceNode):
            value = [self.construct(item) for item in node.value]
        else:
            value = self._scalar(node)
        self._unfinished.discard(key)
        self._values[key] = value, self._count - before
        return value

    def _add(self, count: int, node: Node) -> None:
        self._count += count
        if self._count > _MOST_CHARACTERS:
            raise self._refusal(node, "the document is too large, with what its aliases repeat")

    def _mapping(self, node: MappingNode) -> dict[str, YamlValue]:
        sources: list[dict[str, YamlValue]] = []
        own: dict[str, YamlValue] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                sources += self._merged(value_node)
                continue
            key = self._key(key_node)
            if key in own:
                raise self._refusal(key_node, f"the key `{key}` appears twice in one mapping")
            own[key] = self.construct(value_node)
        merged: dict[str, YamlValue] = {}
        for source in reversed(sources):  # the earlier wins (yaml.org/type/merge.html)
            merged.update(source)
        return {**merged, **own}

    def _merged(self, node: Node) -> list[dict[str, YamlValue]]:
        found = []
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            value = self.construct(source)
            if not isinstance(value, dict):
                raise self._refusal(source, "`<<` takes a mapping or a list of mappings")
            found.append(value)
        return found

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._refusal(node, "a key must be a string")
        key = self._scalar(node)
        if not isinstance(key, str):
            raise self._refusal(node, "a key must be a string: put it in quotes")
        if not key.isprintable():
            raise self._refusal(node, "a key has a character that cannot be printed")
        return key

    def _scalar(self, node: Node) -> YamlValue:
        text: str = node.value
        self._add(len(text), node)
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value"):
            return self._text(node, text)
        if kind == "null":
            return None
        if kind == "bool" and text.lower() in SafeConstructor.bool_values:
            return bool(SafeConstructor.bool_values[text.lower()])
        if kind in ("int", "float"):
            make = getattr(SafeConstructor(), f"construct_yaml_{kind}")
            if len(text) > _NUMBER_CHARS:
                raise self._refusal(node, "not a number")
            try:
                number: int | float = make(node)
            except (ValueError, IndexError):  # such as `!!int x`
                raise self._refusal(node, "not a number") from None
            return number
        raise self._refusal(node, f"the tag `{node.tag}` cannot be used here")

    def _text(self, node: Node, text: str) -> str:
        try:
            # JSON escapes a character above U+FFFF as two surrogates. A lone one is an error.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._refusal(node, "a string is not valid Unicode") from None

    def _refusal(self, node: Node, problem: str) -> ConfigError:
        return self._error(f"{self._where}: line {node.start_mark.line + 1}: {problem}")
