"""Numbers, times and JSON that a server wrote: one parser for each, which trusts nothing.

``int`` takes ``+5``, ``1_000``, blanks and the digits of every script, ``json.loads`` any depth,
and :mod:`email.utils` raises anything. Here every unusual value is a ValueError.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Sequence
from datetime import UTC, date, datetime

MOST_DIGITS = 16
"""Enough for a size or an offset of ten petabytes. No store has such an object."""
GENERATION_DIGITS = 20
"""Enough for an unsigned number of 64 bits."""
MAX_VERSION_CHARACTERS = 1024

_SECONDS_OF_DAY = 86400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBERS = {name: number for number, name in enumerate(_MONTHS, 1)}
_DAY = re.compile(r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ")
_TWO_DIGITS = {f"{number:02d}": number for number in range(61)}  # a minute may have 61 seconds


def parse_number(text: str, most_digits: int = MOST_DIGITS) -> int:
    """A number of at most ``most_digits`` ASCII digits: no sign, no blank, no underscore.

    Raises:
        ValueError: it is no such number.
    """
    if len(text) > most_digits or not (text.isdecimal() and text.isascii()):
        raise ValueError("not a number, or one of too many digits")
    return int(text)


def parse_hex_number(text: str, most_digits: int) -> int:
    """As :func:`parse_number`, with hexadecimal digits. Raises ValueError."""
    if len(text) > most_digits or not text or text.strip(string.hexdigits):
        raise ValueError("not a number, or one of too many digits")
    return int(text, 16)


def http_time_s(value: str) -> float:
    """Seconds since the epoch, from ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110, 5.6.7).

    ``email.utils`` takes ten times as long, for every entry of a listing.

    Raises:
        ValueError: it has another form.
    """
    if value[19:20] != ":" or value[22:23] != ":" or value[25:] != " GMT":
        raise ValueError("not a time")
    try:
        hour, minute = _TWO_DIGITS[value[17:19]], _TWO_DIGITS[value[20:22]]
        second = _TWO_DIGITS[value[23:25]]
    except KeyError:
        raise ValueError("not a time") from None
    if hour > 23 or minute > 59:
        raise ValueError("not a time of the day")
    return float(_midnight_s(value[:17]) + hour * 3600 + minute * 60 + second)


@functools.lru_cache(256)
def _midnight_s(day: str) -> int:
    """Seconds since the epoch, from ``Sun, 06 Nov 1994`` and a blank."""
    found = _DAY.fullmatch(day)
    if found is None or found[2] not in _MONTH_NUMBERS:
        raise ValueError("not a day")
    moment = date(int(found[3]), _MONTH_NUMBERS[found[2]], int(found[1]))
    return (moment.toordinal() - _EPOCH_DAY) * _SECONDS_OF_DAY


def iso_time_s(value: str) -> float:
    """Seconds since the epoch, from ``1994-11-06T08:49:37.000Z`` (ISO 8601, with its zone).

    Raises:
        ValueError: it has another form, or no zone (it would mean the node's zone).
    """
    return iso_times_s([value])[0]


def until_http_time_s(value: str) -> float:
    """Seconds from now until a time of HTTP, at least 0. Raises as :func:`http_time_s`."""
    return max(0.0, http_time_s(value) - datetime.now(UTC).timestamp())


def parse_version(text: str) -> str:
    """A store's name for a version, which is sent back in a header.

    Raises:
        ValueError: a header cannot hold it.
    """
    return parse_versions([text])[0]


def parse_key(text: str) -> str:
    """A key, which is sent back in a URL.

    Raises:
        ValueError: it is not text: JSON can spell half of a surrogate pair.
    """
    if not text.isascii():
        text.encode()
    return text


def parse_numbers(texts: Sequence[str], most_digits: int = MOST_DIGITS) -> list[int]:
    """:func:`parse_number` for each, in a fifth of the time. Raises ValueError for any of them."""
    joined = "".join(texts)
    if joined and not (joined.isdecimal() and joined.isascii()):
        raise ValueError("not a number")
    if max(map(len, texts), default=0) > most_digits:
        raise ValueError("a number of too many digits")
    return list(map(int, texts))


def iso_times_s(texts: Sequence[str]) -> list[float]:
    """:func:`iso_time_s` for each. Raises ValueError for any of them."""
    # By the difference to a time with a zone: without one that is a TypeError. `timestamp` would
    # take such a time as the node's.
    try:
        return [(moment - _EPOCH).total_seconds() for moment in map(datetime.fromisoformat, texts)]
    except TypeError:
        raise ValueError("not a time with its zone") from None


def parse_versions(texts: Sequence[str]) -> Sequence[str]:
    """:func:`parse_version` for each. Raises ValueError for any of them."""
    joined = "".join(texts)
    if not (joined.isascii() and joined.isprintable()):
        raise ValueError("not a version")
    if max(map(len, texts), default=0) > MAX_VERSION_CHARACTERS:
        raise ValueError("a version that is too long")
    return texts


def parse_keys(texts: Sequence[str], begins: str) -> Sequence[str]:
    """:func:`parse_key` for each. All must begin with ``begins``. Raises ValueError."""
    if not all(texts):
        raise ValueError("an empty key")
    # All texts that sort between two with the same beginning begin like them.
    if texts and not (min(texts).startswith(begins) and max(texts).startswith(begins)):
        raise ValueError("a key that was not asked for")
    parse_key("".join(texts))
    return texts
