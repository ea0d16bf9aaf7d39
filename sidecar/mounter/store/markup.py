"""XML of answers, by the standard library."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from datetime import UTC, datetime

_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTHS = {name: number for number, name in enumerate(_NAMES, 1)}


def parse_xml(body: bytes, root: str = "") -> tuple[ET.Element, str]:
    """An XML page.

    Entities are refused with the declaration that they need, which no store sends; the names
    of the elements stay as they are, because to copy them would take longer than to parse.

    Args:
        root: local name of the root element; empty: any.

    Returns:
        The root, and what stands before every local name: ``{namespace}`` or nothing.

    Raises:
        ValueError: it is no XML, has a document type, or another root.
    """
    text = body.decode("utf-8-sig")
    if "<!DOCTYPE" in text:
        raise ValueError("a document type")
    try:
        element = ET.fromstring(text)  # noqa: S314 - see above
    except ET.ParseError:
        raise ValueError("no XML") from None
    namespace, _, name = element.tag.rpartition("}")
    if root and name != root:
        raise ValueError("another document")
    return element, f"{namespace}}}" if namespace else ""


def http_time_s(value: str) -> float:
    """Seconds since the epoch, from ``Sun, 06 Nov 1994 08:49:37 GMT`` (RFC 9110, 5.6.7).

    ``email.utils`` takes five times as long, for every entry of a listing.

    Raises:
        ValueError, LookupError: it looks different.
    """
    day, month, year, hour = value[5:7], value[8:11], value[12:16], value[17:19]
    moment = datetime(
        int(year),
        _MONTHS[month],
        int(day),
        int(hour),
        int(value[20:22]),
        int(value[23:25]),
        tzinfo=UTC,
    )
    return moment.timestamp()
