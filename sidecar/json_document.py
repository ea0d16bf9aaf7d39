"""Parses JSON that anybody may have written, within bounds. Standard library only."""

from __future__ import annotations

import json
from typing import Any

MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_JSON_VALUES = 500_000
"""What separates values in a document; a page of a thousand entries has a tenth of it."""
_FEW_BYTES = 2 * MAX_JSON_VALUES
"""Not worth counting."""


def parse_json(content: bytes) -> Any:
    """A JSON document of bounded size, number of values, and depth.

    Raises:
        ValueError: it is none, or exceeds a bound.
    """
    if len(content) > MAX_JSON_BYTES:
        raise ValueError("a document that is too long")
    if len(content) > _FEW_BYTES:
        # A value costs memory, and text next to none: a value stands behind one of these.
        values = len(content) - len(content.translate(None, b",[{:"))
        if values > MAX_JSON_VALUES:
            raise ValueError("a document of too many values")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("a document that is too deep") from None
