"""Which paths and names catalogue, run and spec may contain. Text only: no file is looked at."""

from __future__ import annotations

import posixpath

from sidecar.errors import ConfigError, printable

_MAX_NAME_BYTES = 255  # NAME_MAX, limits.h
# A key has at most 1,024 bytes in all three stores; half of that is left for names below.
_MAX_PREFIX_BYTES = 512


def check_absolute_path(path: str, where: str, error: type[ConfigError]) -> str:
    """``path`` itself if it is absolute, normalised, and not ``/``.

    Raises:
        ConfigError: of class ``error``, beginning with ``where``.
    """
    if not path.startswith("/"):
        raise error(f"{where}: `{printable(path)}` is not absolute", "begin it with `/`")
    if path == "/":
        raise error(f"{where}: `/` cannot be used", "name a directory below it")
    _check_parts(path[1:], path, where, error)
    return path


def check_parts(path: str, where: str, error: type[ConfigError]) -> None:
    """Refuse a relative path that is empty, not normalised, or has a part that no file can have.

    Raises:
        ConfigError: of class ``error``, beginning with ``where``.
    """
    _check_parts(path, path, where, error)


def _check_parts(relative: str, path: str, where: str, error: type[ConfigError]) -> None:
    for part in relative.split("/"):
        if problem := name_problem(part):
            raise error(f"{where}: `{printable(path)}` has a part that {problem}")


def name_problem(name: str) -> str | None:
    """Why ``name`` cannot be a file's name, as the end of a sentence; None if it can."""
    if not name:
        return "is empty"
    if name in (".", ".."):
        return f"is `{name}`"
    if "/" in name:
        return "contains `/`"
    if not name.isprintable():
        return "has a character that cannot be printed"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    return None


def prefix_problem(prefix: str) -> str | None:
    """Why ``prefix``, without its last ``/``, cannot be a prefix of keys; None if it can."""
    parts = prefix.split("/")
    if "" in parts:
        return "has an empty part (`//`)"
    if "." in parts or ".." in parts:
        return "has a part `.` or `..`"
    if not prefix.isprintable():
        return "has a character that cannot be printed"
    if len(prefix.encode()) > _MAX_PREFIX_BYTES:
        return f"is longer than {_MAX_PREFIX_BYTES} bytes"
    return None


def normalised(path: str) -> str:
    """A path in a container as a runtime reads it: from the root, without ``.``, ``..``, ``//``."""
    return posixpath.normpath(f"/{path.lstrip('/')}")


def contains(outer: str, inner: str) -> bool:
    """Whether the normalised absolute path ``inner`` is ``outer`` or below it."""
    return inner == outer or inner.startswith(outer + "/")
