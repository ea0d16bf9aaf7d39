"""Parses JSON that anybody may have written, within bounds. Standard library only."""

from __future__ import annotations

import json
from typing import Any

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_JSON_VALUES = 500_000
"""The most separators of values in a document; a page of a thousand entries has a tenth of it."""
_FEW_BYTES = 2 * MAX_JSON_VALUES
"""A document of this size is not worth counting."""


def parse_json(content: bytes) -> Any:
    """A JSON document of bounded size, number of values, and depth.

    Raises:
        ValueError: it is no JSON, or exceeds a bound.
    """
    if len(content) > MAX_JSON_BYTES:
        raise ValueError("a document that is too long")
    if len(content) > _FEW_BYTES:
        # Values cost memory, and text next to none. A value follows each of these characters.
        values = len(content) - len(content.translate(None, b",[{:"))
        if values > MAX_JSON_VALUES:
            raise ValueError("a document of too many values")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("a document that is too deep") from None
