"""Checks a spec that somebody wrote, with pydantic, and puts its mistakes into words.

Process 1 and the workers do not import this, since pydantic takes a fifth of a second. They read
what was checked here (:meth:`PersistenceSpec.from_json`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sidecar.contract.spec import PersistenceSpec
from sidecar.contract.spec_rules import check_spec
from sidecar.errors import ConfigError, SpecInvalid

_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's types of this error, of a model and of a dataclass."""


def load_spec(text: str, where: str) -> PersistenceSpec:
    """Parse a spec.

    Args:
        text: the JSON.
        where: how messages name its origin, such as the file.

    Raises:
        SpecInvalid: naming the path inside the document and the nearest valid key.
        ConfigError: a rule of :mod:`sidecar.contract.spec_rules` is broken.
    """
    model = TypeAdapter(PersistenceSpec)
    try:
        spec = model.validate_json(text)
    except ValidationError as invalid:
        _, problem = describe(invalid, model)
        raise SpecInvalid(f"{where}: {problem}", "make it with `sidecar resolve`") from None
    try:
        check_spec(spec)
    except ConfigError as error:
        raise type(error)(f"{where}: {error.what}", error.hint) from None
    return spec


def describe(
    invalid: ValidationError, model: TypeAdapter[Any], keys: tuple[str, ...] = ()
) -> tuple[bool, str]:
    """One clause for the first error: the path, what is wrong, the nearest valid key.

    An unknown key comes first: it can be the reason why another one is missing or wrong.

    Args:
        keys: of the place that the document has in a larger one.

    Returns:
        Whether it is an unknown key, and the clause.
    """
    errors = invalid.errors(include_url=False, include_input=False, include_context=False)
    first: Mapping[str, Any] = min(errors, key=lambda error: error["type"] not in _UNKNOWN_KEY)
    location = [*keys, *map(str, first["loc"])]
    path = ".".join(location) or "the document"
    if first["type"] in _UNKNOWN_KEY:
        schema = model.json_schema()
        parts = [schema, *schema.get("$defs", {}).values()]
        known = sorted({key for part in parts for key in part.get("properties", ())})
        return True, f"unknown key `{path}`{nearest(location[-1], known)}"
    if first["type"] == "missing":
        return False, f"`{path}` is missing"
    return False, f"`{path}`: {first['msg'].lower()}"


def nearest(word: str, known: list[str]) -> str:
    """`` (did you mean `x`?)``, or an empty string if no known word is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean `{match[0]}`?)" if match else ""
