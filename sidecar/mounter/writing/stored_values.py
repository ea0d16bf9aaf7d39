"""Checks of values read from the state, which somebody else may have written.

Each returns the value, and raises ValueError if this program would not have written it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST_NUMBER = 1 << 62
"""No number, count, size or offset is larger, so sums of them do not overflow."""
_MOST_PART = 1_000_000
_MOST_KEY_BYTES = 4096
_ODD_KEY = re.compile(r"(^|/)\.{0,2}(/|$)|\0")
_SPOOL_NAME = re.compile(r"\d{8,12}\.data", re.ASCII)


def number(value: Any) -> int:
    """A whole number that is not negative."""
    if type(value) is int and 0 <= value <= MOST_NUMBER:
        return value
    raise ValueError(f"{_shown(value)} is no number, or out of range")


def part(value: Any) -> int:
    """The number of a part."""
    if not 1 <= number(value) <= _MOST_PART:
        raise ValueError(f"no part has the number {value}")
    return int(value)


def flag(value: Any) -> bool:
    """True or False."""
    if value is True or value is False:
        return bool(value)
    raise ValueError(f"{_shown(value)} is neither true nor false")


def seconds(value: Any) -> float:
    """A time since the epoch."""
    if type(value) in (int, float) and -MOST_NUMBER < value < MOST_NUMBER:
        return float(value)
    raise ValueError(f"{_shown(value)} is no time")


def text(value: Any) -> str:
    """A string."""
    if type(value) is str:
        return value
    raise ValueError(f"{_shown(value)} is no text")


def texts(value: Any) -> dict[str, str]:
    """Strings by name, such as metadata."""
    if isinstance(value, dict) and all(type(one) is str for one in value.values()):
        return value
    raise ValueError(f"{_shown(value)} are no texts by name")


def mapping(value: Any) -> Mapping[str, Any]:
    """Values by name."""
    if isinstance(value, dict):
        return value
    raise ValueError(f"{_shown(value)} has no names")


def key(value: Any) -> str:
    """The key of a file's object. No part of it is empty, ``.`` or ``..``."""
    if len(text(value)) > _MOST_KEY_BYTES or _ODD_KEY.search(value):
        raise ValueError(f"{_shown(value)} is no key of a file")
    return str(value)


def prefix(value: Any) -> str:
    """The key of a directory, which ends in ``/``."""
    if not text(value).endswith("/"):
        raise ValueError(f"{_shown(value)} is no key of a directory")
    return f"{key(value[:-1])}/"


def spool_name(value: Any) -> str:
    """The name of a spool file."""
    if not _SPOOL_NAME.fullmatch(text(value)):
        raise ValueError(f"{_shown(value)} is no name of a spool file")
    return str(value)


def _shown(value: Any) -> str:
    shown = ascii(value) if isinstance(value, str | int | float) else f"a {type(value).__name__}"
    return shown if len(shown) < 80 else f"{shown[:77]}..."
