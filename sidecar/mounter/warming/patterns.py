"""Patterns of files below a volume, as regular expressions. No I/O.

As in a shell: ``*``, ``?`` and ``[a-z]`` stay in their folder, ``**`` is any number of folders.
"""

from __future__ import annotations

import re

_MAGIC = re.compile(r"[*?[]")
_TOKEN = re.compile(r"\*|\?|\[(!?)([^]]+)\]|.", re.DOTALL)


def base(pattern: str) -> str:
    """The folder that all matching files are in or below; empty for the volume."""
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        if _MAGIC.search(part):
            return "/".join(parts[:number])
    return "/".join(parts[:-1])


def compiled(pattern: str) -> re.Pattern[str]:
    """Matches paths below the volume, whole (:meth:`re.Pattern.fullmatch`).

    Text between two stars is searched once, from the left: if it matches at the first place, no
    later place lets more match behind it. So the time is at most the path's length times the
    pattern's.
    """
    *folders, name = pattern.split("/")
    runs = [""]  # of folders, between the ``**``
    for folder in folders:
        if folder == "**":
            runs.append("")
        else:
            runs[-1] += f"{_part(folder)}/"
    first, last = _between_stars("(?:[^/]+/)*?", runs)
    return re.compile(first + last + (".*" if name == "**" else _part(name)), re.DOTALL)


def _part(pattern: str) -> str:
    pieces = [""]
    for token in _TOKEN.finditer(pattern):
        if token[0] == "*":
            pieces.append("")
        else:
            pieces[-1] += _translated(token)
    first, last = _between_stars("[^/]*?", pieces)
    return f"{first}{last}(?=/|\\Z)" if len(pieces) > 1 else first + last


def _between_stars(star: str, pieces: list[str]) -> tuple[str, str]:
    """The expression up to the last star, and the one from there on."""
    if len(pieces) == 1:
        return pieces[0], ""
    middle = "".join(f"(?>{star}{piece})" for piece in pieces[1:-1] if piece)
    return pieces[0] + middle, star + pieces[-1]


def _translated(token: re.Match[str]) -> str:
    text, negated, characters = token[0], token[1], token[2]
    if text == "?":
        return "[^/]"
    if characters is None:
        return re.escape(text)
    # A range that goes backwards matches nothing, and re refuses it.
    ranges = re.sub(r"(.)-(.)", lambda r: r[0] if r[1] <= r[2] else f"{r[2]}-{r[1]}", characters)
    escaped = re.sub(r"([\\\]^&~|[])", r"\\\1", ranges)
    return f"(?!/)[{'^' if negated else ''}{escaped}]"
