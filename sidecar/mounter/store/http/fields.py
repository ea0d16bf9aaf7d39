"""The header of a response. Source: RFC 9112, section 5."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.units import KIB

MAX_LINE_BYTES = 16 * KIB
_MAX_FIELDS = 1000
_FRAMING = ("content-length", "transfer-encoding")


class BrokenResponse(Exception):
    """The response is not HTTP. The message quotes nothing of the response."""


class Headers(dict[str, str]):
    """Header fields by lower-case name; the last one of a repeated field counts.

    Attributes:
        lines: the fields as they came.
    """

    lines: Sequence[str] = ()

    def below(self, start: str) -> dict[str, str]:
        """The fields whose names begin with ``start``, by the rest of their names as sent."""
        names = (line.partition(":")[0] for line in self.lines)
        return {
            name[len(start) :]: self[name.lower()]
            for name in names
            if name.lower().startswith(start)
        }


def parse_fields(head: bytes, lines: list[str]) -> Headers:
    """The fields of a header. Raises BrokenResponse, also for the line before them."""
    count = len(lines)
    if count > _MAX_FIELDS:
        raise BrokenResponse("too many fields")
    if len(head) > MAX_LINE_BYTES and max(map(len, lines), default=0) > MAX_LINE_BYTES:
        raise BrokenResponse("a field is too long")
    if head.count(b"\r") != count or head.count(b"\n") != count or b"\0" in head:
        raise BrokenResponse("a control character in the header")
    fields = Headers()
    fields.lines = lines
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BrokenResponse("broken header")
        fields[name.lower()] = value.strip(" \t")  # other spaces may be bytes of UTF-8
    if len(fields) != count:
        names = [line.partition(":")[0].lower() for line in lines]
        if any(names.count(name) > 1 for name in _FRAMING):
            raise BrokenResponse("two lengths of one body")
    return fields
