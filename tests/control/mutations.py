"""Inputs near valid ones: JSON documents and bytes, changed at random."""

from __future__ import annotations

import random
from typing import Any

_WORDS = [
    "", " ", "0", "1", "-1", "²", "1e999", "NaN", "null", "true", "[]", "{}", "a", "images",
    "labels", "models", "archive", "local", "urls", "/", "//", "/proc", "/mnt/persistence", "..",
    "../..", "a/b", "~1", "%2e", "\0", "\n", "\r", "\ud800", "\U0001f600", "é", "x" * 300,
    "a/" * 200, "500m", "2Gi", "9" * 30, "1" * 5000, "٣Gi", "*a" * 25,
    "mount-sidecar", "mount-sidecar-shared",
    "injected", "s3", "s3://images/train", "gs://[", "wasbs://a@b", "[" * 2000,
    '["images"]', '["images","images"]',
]  # fmt: skip
_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.5, 1e308,
    "", [], {}, [None], [[]], [{}],
    {"": ""}, {"a": None}, {"name": "a"}, [{"name": "a"}],
]  # fmt: skip
_DEEP_LEVELS = (50, 120, 900, 20_000)


class Mutations:
    """The same sequence for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        """A string that some parser may not expect."""
        rng = self.random
        words = [rng.choice(_WORDS) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        if rng.random() < 0.1:
            words.append("".join(chr(rng.randrange(0x500)) for _ in range(rng.randrange(20))))
        return "".join(words)

    def value(self) -> Any:
        """Anything that JSON has, as deep as a stack allows and deeper."""
        rng = self.random
        chance = rng.random()
        if chance < 0.5:
            return self.text()
        if chance < 0.97:
            return rng.choice(_VALUES)
        deep: Any = self.text()
        for _ in range(rng.choice(_DEEP_LEVELS[:3])):
            deep = [deep] if chance < 0.985 else {"a": deep}
        return deep

    def change(self, document: Any) -> None:
        """Change one to four places of a document, in place: replace, remove, add, copy, move."""
        places = list(_places(document))
        for _ in range(self.random.choice((1, 1, 1, 2, 4))):
            parent, key = self.random.choice(places)
            if isinstance(parent, dict):
                self._change_mapping(parent, key, places)
            elif key < len(parent):
                self._change_list(parent, key)

    def _change_mapping(self, parent: dict[str, Any], key: str, places: list[Any]) -> None:
        rng = self.random
        act = rng.randrange(6)
        if act == 0:
            parent.pop(key, None)
        elif act == 1:
            parent[self.text()] = self.value()
        elif act == 2:
            parent[self.text()] = parent.pop(key, None)
        elif act == 3:
            other, place = rng.choice(places)
            # A copy, since a document that holds itself is no JSON.
            found = other.get(place) if isinstance(other, dict) else None
            parent[key] = found if isinstance(found, str | int) else self.value()
        else:
            parent[key] = self.value()

    def _change_list(self, parent: list[Any], index: int) -> None:
        act = self.random.randrange(4)
        if act == 0:
            del parent[index]
        elif act == 1:
            parent.insert(index, self.value())
        elif act == 2:
            parent[index] = self.value()
        else:
            parent.extend(parent[:20])

    def change_bytes(self, data: bytes) -> bytes:
        """Change a few bytes: flip, cut, insert, repeat."""
        rng = self.random
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(len(changed) + 1)
            end = min(len(changed), at + rng.choice((1, 2, 8, 64, 4096)))
            act = rng.randrange(5)
            if act == 0:
                del changed[at:end]
            elif act == 1:
                changed[at:at] = rng.randbytes(rng.choice((1, 1, 4)))
            elif act == 2:
                changed[at:at] = rng.choice(_WORDS).encode("utf-8", "surrogatepass")
            elif act == 3:
                changed[at:at] = changed[at:end] * rng.choice((1, 2, 50))
            elif at < len(changed):
                changed[at] = rng.randrange(256)
        if rng.random() < 0.01:
            at = rng.randrange(len(changed) + 1)
            changed[at:at] = rng.choice((b"[", b'{"a":', b"{a: ", b"- ")) * rng.choice(_DEEP_LEVELS)
        return bytes(changed)


def _places(document: Any) -> list[tuple[Any, Any]]:
    """(parent, key or index) of everything in a document."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        item = pending.pop()
        keys = list(item) if isinstance(item, dict) else range(len(item))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], dict | list):
                pending.append(item[key])
    return found
