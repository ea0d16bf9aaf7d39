"""Types of values read from the state, which somebody else may have written.

Where :mod:`msgspec` decodes a value, it refuses what this program would not have written. It checks
nothing when it encodes.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MOST_NUMBER = 1 << 62
"""No number, count, size or offset is larger, so sums of them do not overflow."""
_MOST_KEY_CHARACTERS = 4096
_COMPONENT = r"(?!\.{1,2}(?:/|\Z))[^/\0]+"

Number = Annotated[int, Meta(ge=0, le=MOST_NUMBER)]
"""A whole number that is not negative."""
PartNumber = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, Meta(gt=-MOST_NUMBER, lt=MOST_NUMBER)]
"""A time since the epoch."""
Key = Annotated[
    str, Meta(max_length=_MOST_KEY_CHARACTERS, pattern=rf"\A{_COMPONENT}(?:/{_COMPONENT})*\Z")
]
"""The key of a file's object. No part of it is empty, ``.`` or ``..``."""
Prefix = Annotated[
    str, Meta(max_length=_MOST_KEY_CHARACTERS + 1, pattern=rf"\A(?:{_COMPONENT}/)+\Z")
]
"""The key of a directory, which ends in ``/``."""
KeyOrPrefix = Annotated[
    str, Meta(max_length=_MOST_KEY_CHARACTERS + 1, pattern=rf"\A{_COMPONENT}(?:/{_COMPONENT})*/?\Z")
]
SpoolName = Annotated[str, Meta(pattern=r"\A[0-9]{8,12}\.data\Z")]
"""The name of a spool file."""
