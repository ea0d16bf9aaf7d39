"""A secret file, or the environment, as named fields; the common part of all clouds.

No value of a secret may appear in an error, a traceback or a ``repr``. Tracebacks may be
printed with the variables of their frames (pytest, error trackers), and an exception keeps
the one during which it was raised. So no function here, or in a store's ``credentials``
module, raises while one of its variables holds a value, and no parser's exception, which
holds the text, is ever in the context of an error. Errors name files and keys.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sidecar.errors import SecretFileMissing, SecretInvalid, SecretKeyMissing, SecretNotJson


class SecretFields:
    """Named values, which ``repr`` does not show.

    Methods that take several ``names`` take synonyms, the usual one first.

    Args:
        where: the values' origin, for errors.
    """

    def __init__(self, where: str, values: Mapping[str, object]) -> None:
        self.where = where
        self._values = {name: _stripped(value) for name, value in values.items()}

    def __repr__(self) -> str:
        return f"SecretFields({self.where!r})"

    @classmethod
    def from_environment(cls, names: Iterable[str]) -> SecretFields:
        """The variables of the sidecar's own environment with these names."""
        return cls("the environment", {name: os.environ.get(name) for name in names})

    @classmethod
    def from_file(cls, secrets_root: str, secret: str, secret_key: str) -> SecretFields:
        """The JSON object in the file ``<secrets_root>/<secret>/<secret_key>``.

        Raises:
            SecretFileMissing: no such file, or it cannot be read.
            SecretNotJson: not a JSON object. Commas before ``}`` and ``]`` are forgiven.
        """
        path = Path(secrets_root, secret, secret_key)
        where = f"secret file {path}"
        problem = ""
        try:
            content = path.read_bytes()
        except OSError as failure:
            problem = str(failure.strerror).lower()
        if problem:
            raise SecretFileMissing(
                f"{where}: {problem}",
                f"`kubectl create secret generic {secret} --from-file={secret_key}=FILE` in the "
                "pod's namespace, or select other volumes",
            )
        values = parse_object(content)
        del content
        if isinstance(values, str):
            raise SecretNotJson(
                f"{where}: {values}", "the key of the secret must hold one JSON object"
            )
        return cls(where, values)

    def text(self, *names: str) -> str | None:
        """The first of ``names`` that is not absent, null or empty.

        Raises:
            SecretInvalid: it is not a string, or not one line of printable ASCII.
        """
        name = self.first(*names)
        if name is None:
            return None
        self.check(_is_line, name, "is not one line of ASCII text")
        return str(self._values[name])

    def required(self, *names: str) -> str:
        """As :meth:`text`.

        Raises:
            SecretKeyMissing: as :meth:`need`.
            SecretInvalid: as :meth:`text`.
        """
        return str(self.text(self.need(*names)))

    def flag(self, *names: str, default: bool) -> bool:
        """A boolean: JSON's, or one of the words that upstream accepts.

        Raises:
            SecretInvalid: anything else.
        """
        name = self.first(*names)
        if name is None:
            return default
        self.check(_is_flag, name, "is neither true nor false")
        return _FLAGS[str(self._values[name]).lower()]

    def url(self, *names: str) -> str | None:
        """An endpoint's URL, without a trailing slash.

        Raises:
            SecretInvalid: not ``http://`` or ``https://`` and a host, or with a login in it.
        """
        name = self.first(*names)
        if name is None:
            return None
        self.check(is_endpoint, name, "is not a plain http:// or https:// URL")
        return str(self._values[name]).rstrip("/")

    def check(self, holds: Callable[[object], bool], name: str, problem: str) -> None:
        """Raise SecretInvalid, naming ``name``, unless its value ``holds``."""
        if not holds(self._values.get(name)):
            raise SecretInvalid(f"{self.where}: `{name}` {problem}")

    def first(self, *names: str) -> str | None:
        """The first of ``names`` that is not absent, null or empty; None if all are."""
        return next((name for name in names if self._values.get(name) not in (None, "")), None)

    def need(self, *names: str) -> str:
        """As :meth:`first`.

        Raises:
            SecretKeyMissing: all are absent, null or empty.
        """
        name = self.first(*names)
        if name is None:
            raise SecretKeyMissing(
                f"{self.where}: `{names[0]}` is missing or empty", "add it to the secret"
            )
        return name

    def texts(self) -> dict[str, str]:
        """Every value that is a string."""
        return {name: value for name, value in self._values.items() if isinstance(value, str)}


_FLAGS = {
    **dict.fromkeys(("true", "yes", "1", "on"), True),
    **dict.fromkeys(("false", "no", "0", "off"), False),
}


def _stripped(value: object) -> object:
    # `echo key | kubectl create secret` adds a newline, which no login has.
    return value.strip() if isinstance(value, str) else value


# --- what a value may be ---------------------------------------------------------------


def _is_line(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _is_flag(value: object) -> bool:
    return str(value).lower() in _FLAGS


def is_endpoint(value: object) -> bool:
    """Whether it is an ``http://`` or ``https://`` URL without login, query or fragment."""
    if not isinstance(value, str) or not value.isprintable():
        return False
    try:
        parts = urlsplit(value)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return bool(
        parts.scheme in ("http", "https")
        and parts.hostname
        and port_is_valid
        and "@" not in parts.netloc
        and not parts.query
        and not parts.fragment
        and " " not in value
    )


def is_base64(value: object) -> bool:
    """Whether it is base64 of at least one byte."""
    try:
        return bool(base64.b64decode(str(value), validate=True))
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return False


# --- JSON as people write it -----------------------------------------------------------

# A string as a whole, or a comma with nothing but white space before a closing bracket.
_STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)


def parse_object(content: bytes) -> dict[str, object] | str:
    """The JSON object in ``content``, trailing commas forgiven; or what is wrong with it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "not UTF-8"
    try:
        values = json.loads(_STRING_OR_TRAILING_COMMA.sub(_forgiven, text))
    except json.JSONDecodeError as bad:
        return f"not JSON (line {bad.lineno}, column {bad.colno})"
    except (ValueError, RecursionError):  # a number of thousands of digits, endless nesting
        return "not JSON"
    return values if isinstance(values, dict) else "not a JSON object"


def _forgiven(match: re.Match[str]) -> str:
    """A string unchanged; a space for a comma after a value, so that columns stay right."""
    found = match.group()
    if found != ",":
        return found
    before = match.string[: match.start()].rstrip()
    return found if before.endswith(("{", "[", ",")) or not before else " "
