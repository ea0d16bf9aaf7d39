"""Checks a spec that somebody wrote, with pydantic, and puts its mistakes into words.

Process 1 and the workers do not import this, since pydantic takes a fifth of a second. They read
what was checked here (:meth:`PersistenceSpec.from_json`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import operator
import types
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from sidecar.contract.spec import PersistenceSpec
from sidecar.contract.spec_rules import check_spec
from sidecar.errors import ConfigError, SpecInvalid

LIMITS = ("ge", "gt", "le", "lt")
"""Limits on a number in a field's metadata, under pydantic's names."""


def load_spec(text: str, where: str) -> PersistenceSpec:
    """Parse a spec.

    Args:
        text: the JSON.
        where: how messages name its origin, such as the file.

    Raises:
        SpecInvalid: naming the path inside the document and the nearest valid key.
        ConfigError: a rule of :mod:`sidecar.contract.spec_rules` is broken.
    """
    model = _model_of(PersistenceSpec)
    try:
        valid = model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise SpecInvalid(
            f"{where}: {describe_validation_error(first, model)}",
            "make it with `sidecar resolve`",
        ) from None
    spec = PersistenceSpec.from_document(valid.model_dump())
    try:
        check_spec(spec)
    except ConfigError as error:
        raise type(error)(f"{where}: {error.what}", error.hint) from None
    return spec


@functools.cache
def _model_of(record: type[Any]) -> type[BaseModel]:
    """The strict model of a dataclass of :mod:`.spec`: same fields, defaults, limits."""
    hints = get_type_hints(record)
    fields: dict[str, Any] = {
        field.name: (_checked_type(hints[field.name]), _checked_field(field))
        for field in dataclasses.fields(record)
    }
    return create_model(
        record.__name__,
        __config__=ConfigDict(extra="forbid", frozen=True, strict=True),
        __doc__=inspect.getdoc(record),
        **fields,
    )


def _checked_type(hint: Any) -> Any:
    """A field's type, with models in the place of dataclasses."""
    if dataclasses.is_dataclass(hint):
        return _model_of(hint)  # type: ignore[arg-type]
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        return types.GenericAlias(tuple, (_checked_type(arguments[0]), ...))
    if get_origin(hint) is types.UnionType and all(map(dataclasses.is_dataclass, arguments)):
        union = functools.reduce(operator.or_, map(_checked_type, arguments))
        return Annotated[union, Field(discriminator="type")]
    if get_origin(hint) is types.UnionType and any(map(dataclasses.is_dataclass, arguments)):
        return functools.reduce(operator.or_, map(_checked_type, arguments))  # with None
    return hint


def _checked_field(field: dataclasses.Field[Any]) -> Any:
    limits = {key: field.metadata[key] for key in LIMITS if key in field.metadata}
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    if field.default is dataclasses.MISSING:
        return Field(**limits)
    default: Any = field.default
    if dataclasses.is_dataclass(default):
        default = _model_of(type(default))()  # type: ignore[arg-type]
    return Field(default=default, **limits)


def describe_validation_error(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One clause for one pydantic error: the path, what is wrong, the nearest valid key."""
    location = [str(part) for part in error["loc"]]
    path = ".".join(location) or "the document"
    if error["type"] == "extra_forbidden":
        known = sorted(_known_keys(model))
        return f"unknown key `{path}`{nearest(location[-1], known)}"
    if error["type"] == "missing":
        return f"`{path}` is missing"
    return f"`{path}`: {error['msg'].lower()}"


def nearest(word: str, known: list[str]) -> str:
    """`` (did you mean `x`?)``, or an empty string if no known word is near."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean `{match[0]}`?)" if match else ""


def _known_keys(model: type[BaseModel]) -> set[str]:
    keys: set[str] = set()
    pending: list[Any] = [model]
    seen: set[Any] = set()
    while pending:
        item = pending.pop()
        if item in seen:
            continue
        seen.add(item)
        if isinstance(item, type) and issubclass(item, BaseModel):
            for name, info in item.model_fields.items():
                keys.add(info.alias or name)
                pending.append(info.annotation)
        else:
            pending.extend(getattr(item, "__args__", ()))
    return keys
