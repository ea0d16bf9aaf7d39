"""Parses the XML of responses, by the standard library, within bounds."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from itertools import chain

from sidecar.units import MIB

MAX_MARKUP = 400_000
"""The most ``<`` and quotes in a document; a page of a thousand entries has a tenth of it. An
element takes 400 bytes of memory but four in the document, and an attribute half of that, so a
limit on the document's length would bound nothing."""
_FEW_BYTES = 2 * MAX_MARKUP
"""A document of this size is not worth counting."""
MAX_DEPTH = 16
_MAX_FORBIDDEN_BYTES = 4 * MIB
"""The longest document that is parsed a second time."""

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that no document may hold, not even as a reference (XML 1.0, 2.2)."""
_REFERENCE = re.compile("&#(?:x([0-9a-fA-F]{1,6})|([0-9]{1,7}));")
_PRIVATE = range(0xE000, 0xF900)
"""Code points without a meaning in Unicode."""


def parse_xml(body: bytes, root: str = "") -> tuple[ET.Element, str]:
    """An XML page.

    Characters that XML forbids are read if stores put them into a key, as they are or as a
    reference. S3 does so unless it is asked for ``encoding-type=url``; Ceph's gateway does so even
    then, in fields that are not keys.

    Entities are refused together with the declaration that they need, which no store sends. The
    elements' names stay as they are: copying them would take longer than parsing.

    Bounds on memory are checked by counting before anything is parsed, at the speed of memchr(3). A
    parser with our own handlers would take twice the time.

    Args:
        root: local name of the root element; empty: any.

    Returns:
        The root, and the prefix of every local name: ``{namespace}`` or nothing.

    Raises:
        ValueError: it is no XML, has a document type or another root, or exceeds a bound.
    """
    if len(body) > _FEW_BYTES:
        markup = len(body) - len(body.translate(None, b"<\"'"))
        if markup > MAX_MARKUP:
            raise ValueError("a document of too many elements")
    if b"<!DOCTYPE" in body:
        raise ValueError("a document type")
    parser = ET.XMLParser(encoding="utf-8")  # noqa: S314 - see above
    try:
        parser.feed(body)
        element = parser.close()
    except ET.ParseError:
        element = _parse_forbidden(body)
    if _is_too_deep(element):
        raise ValueError("a document that is too deep")
    namespace, _, name = element.tag.rpartition("}")
    if root and name != root:
        raise ValueError("another document")
    return element, f"{namespace}}}" if namespace else ""


def _is_too_deep(root: ET.Element) -> bool:
    level = [root]
    for _ in range(MAX_DEPTH):
        level = list(filter(len, chain.from_iterable(level)))  # the elements with elements
        if not level:
            return False
    return True


def _parse_forbidden(body: bytes) -> ET.Element:
    """Parse a page with other characters in place of those that XML forbids.

    Raises ValueError: it is no XML for another reason.
    """
    if len(body) > _MAX_FORBIDDEN_BYTES:
        raise ValueError("no XML")
    text = body.decode("utf-8-sig")
    used = {*text, *map(_meant, _REFERENCE.finditer(text))}
    unused = (chr(code) for code in _PRIVATE if chr(code) not in used)
    stand_in = dict(zip(filter(FORBIDDEN.match, sorted(used)), unused, strict=False))

    def replace(found: re.Match[str]) -> str:
        return stand_in.get(_meant(found)) or found[0]

    parsable = _REFERENCE.sub(replace, text).translate(str.maketrans(stand_in))
    try:
        root = ET.fromstring(parsable)  # noqa: S314 - as above
    except ET.ParseError:
        raise ValueError("no XML") from None
    back = str.maketrans({other: character for character, other in stand_in.items()})
    for element in root.iter():
        element.text = element.text and element.text.translate(back)
    return root


def _meant(reference: re.Match[str]) -> str:
    """The character; empty for anything that is no code point."""
    code: int = int(reference[1], 16) if reference[1] else int(reference[2])
    return chr(code) if code <= sys.maxunicode else ""
