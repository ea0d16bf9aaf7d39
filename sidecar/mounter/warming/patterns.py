"""Patterns of files below a volume, as regular expressions. No I/O.

As in a shell: ``*``, ``?`` and ``[a-z]`` stay in their folder, ``**`` is any number of folders.
"""

from __future__ import annotations

import re

_MAGIC = re.compile(r"[*?[]")
_TOKEN = re.compile(r"\*|\?|\[(!?)([^]]+)\]|.", re.DOTALL)


def base(pattern: str) -> str:
    """The folder in which all files that match are, or below which; empty for the volume."""
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        if _MAGIC.search(part):
            return "/".join(parts[:number])
    return "/".join(parts[:-1])


def compiled(pattern: str) -> re.Pattern[str]:
    """Matches paths below the volume, whole (:meth:`re.Pattern.fullmatch`)."""
    *folders, name = pattern.split("/")
    expression = "".join(
        "(?:[^/]+/)*" if folder == "**" else f"{_part(folder)}/" for folder in folders
    )
    return re.compile(expression + (".*" if name == "**" else _part(name)), re.DOTALL)


def _part(pattern: str) -> str:
    return _TOKEN.sub(_translated, pattern)


def _translated(token: re.Match[str]) -> str:
    text, negated, characters = token[0], token[1], token[2]
    if text == "*":
        return "[^/]*"
    if text == "?":
        return "[^/]"
    if characters is None:
        return re.escape(text)
    # A range that goes backwards is no range.
    ranges = re.sub(r"(.)-(.)", lambda r: r[0] if r[1] <= r[2] else f"{r[2]}-{r[1]}", characters)
    escaped = re.sub(r"([\\\]^&~|[])", r"\\\1", ranges)
    return f"(?!/)[{'^' if negated else ''}{escaped}]"
