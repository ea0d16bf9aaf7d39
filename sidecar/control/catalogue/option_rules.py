"""Options as people write them, and how several places that set them are combined.

An option is set for the cluster (catalogue, ``mountSidecar.options``), for a volume (catalogue,
``options``) and for a pod (annotation). The later place wins, option by option. In each place
``profile`` stands for a set of values, which the other options of that place override.
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, get_args, get_type_hints

from pydantic.alias_generators import to_camel

from sidecar.contract.options import Options, Times
from sidecar.contract.spec import PersistenceSpec
from sidecar.contract.spec_document import nearest
from sidecar.control.catalogue.quantity import parse_quantity
from sidecar.control.catalogue.yaml_document import YamlValue
from sidecar.errors import OptionInvalid, OptionRefused, UnknownKey
from sidecar.units import GIB, MIB, PIB, TIB

PROFILE: Final = "profile"

PROFILES: Final[Mapping[str, Mapping[str, Any]]] = {
    "training": {},
    "serving": {"read_whole": "always", "names_s": 300.0, "part_bytes": 16 * MIB},
    "checkpointing": {"save_s": 5.0, "part_bytes": 32 * MIB, "spool_bytes": 50 * GIB},
    "interactive": {"names_s": 1.0, "save_s": 15.0, "retry_s": 10.0},
}
"""Each profile's values, by the option's field. A profile does not change other options."""


def option_name(field_name: str) -> str:
    """How people write an option: ``retry_s`` is ``retrySeconds``."""
    stem = field_name.removesuffix("_s")
    return to_camel(stem) + ("Seconds" if stem != field_name else "")


def _options_of(record: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    fields = dataclasses.fields(record)
    return {option_name(one.name): one for one in fields if "about" in one.metadata}


VOLUME_OPTIONS: Final = _options_of(Options)
"""By the name that people write."""
POD_OPTIONS: Final = _options_of(Times)
"""The options of a whole pod, by the name that people write."""
_EVERY: Final = {**VOLUME_OPTIONS, **POD_OPTIONS}
_HINTS: Final = {**get_type_hints(Options), **get_type_hints(Times)}
_R = TypeVar("_R", Options, Times)

Values = Mapping[str, Any]
"""Options that one place sets, by the name that people write; ``profile`` may be among them."""


def parse_options(section: YamlValue, where: str, *, of_pod: bool) -> Values:
    """The options that one place sets.

    Args:
        section: a mapping as parsed; None: there is none.
        where: how messages name the place.
        of_pod: whether options of a pod are allowed.

    Raises:
        OptionInvalid: a value outside the option's range, or no mapping.
        UnknownKey: no option has this name.
    """
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise OptionInvalid(f"{where}: must be a mapping of options")
    for name in section:
        if name in POD_OPTIONS and not of_pod:
            raise OptionInvalid(
                f"{where}.{name}: is of the pod, not of one volume",
                "set it for the cluster, or in the pod's annotation under `*`",
            )
    return {name: _value(name, value, where) for name, value in section.items()}


def _value(name: str, value: YamlValue, where: str) -> Any:
    if name == PROFILE:
        if not isinstance(value, str) or value not in PROFILES:
            raise OptionInvalid(f"{where}.{PROFILE}: must be {_listed(PROFILES)}")
        return value
    if name not in _EVERY:
        known = [*_EVERY, PROFILE]
        raise UnknownKey(f"unknown option `{where}.{name}`{nearest(name, known)}")
    found = _EVERY[name]
    if _HINTS[found.name] == tuple[str, ...]:
        return _texts(name, value, where)
    if _HINTS[found.name] == str | None:
        if isinstance(value, str) and _LABEL.fullmatch(value):
            return value
        raise OptionInvalid(
            f"{where}.{name}: must be a label of up to 63 letters, digits, `.`, `_` and `-`"
        )
    if choices := get_args(_HINTS[found.name]):
        words = [choice for choice in choices if isinstance(choice, str)]
        if words and value in words:
            return value
        if words:
            raise OptionInvalid(f"{where}.{name}: must be {_listed(words)}")
    number = _number(name, value, where)
    for limit, is_kept in _RULES.items():
        bound = found.metadata.get(limit)
        if bound is not None and not is_kept(number, bound):
            raise OptionInvalid(f"{where}.{name}: must be {range_text(found.metadata, name)}")
    return number


_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MOST_TEXTS: Final = 100
_MOST_CHARACTERS: Final = 1024


def _texts(name: str, value: YamlValue, where: str) -> tuple[str, ...]:
    """Paths or patterns below the volume."""
    if not isinstance(value, list) or len(value) > _MOST_TEXTS:
        raise OptionInvalid(f"{where}.{name}: must be a list of at most {_MOST_TEXTS} paths")
    for text in value:
        parts = text.split("/") if isinstance(text, str) else [".."]
        if "" in parts or ".." in parts or not _is_plain(str(text)):
            raise OptionInvalid(f"{where}.{name}: must be paths below the volume, without `..`")
    return tuple(str(text) for text in value)


def _is_plain(text: str) -> bool:
    return len(text) <= _MOST_CHARACTERS and text.isprintable()


_TOO_LARGE: Final = 1e18
"""No number may reach it. Infinity and NaN are not below it either."""
_RULES: Final = {"ge": operator.ge, "gt": operator.gt, "le": operator.le}


def _number(name: str, value: YamlValue, where: str) -> int | float:
    is_size = name.endswith("Bytes")
    if isinstance(value, str) and is_size:
        try:
            return parse_quantity(value).rounded_up
        except ValueError:
            pass
    elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _TOO_LARGE:
        if not is_size:
            return float(value)
        if value == int(value):
            return int(value)
    kind = "bytes: a whole number, or a quantity such as `10Gi`" if is_size else "seconds"
    raise OptionInvalid(f"{where}.{name}: must be {kind}")


@dataclass(frozen=True, slots=True)
class Layer:
    """The options that one place sets.

    Attributes:
        origin: how messages name the place, such as ``pod``.
    """

    origin: str
    values: Values = field(default_factory=dict)


def combined(layers: Iterable[Layer], record: type[_R]) -> tuple[_R, dict[str, str]]:
    """The options that the layers result in, and the origin of each option that is set.

    Args:
        record: :class:`Options` for a volume, or :class:`Times` for a pod.
    """
    known = _options_of(record)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for name, value, origin in _expanded(layer):
            if name in known:
                values[known[name].name] = value
                origins[name] = origin
    return record(**values), origins


def _expanded(layer: Layer) -> list[tuple[str, Any, str]]:
    """Name, value and origin of each option that a layer sets; those of its profile come first."""
    profile = layer.values.get(PROFILE)
    origin = f"profile {profile} of the {layer.origin}"
    of_profile = [
        (option_name(key), v, origin) for key, v in PROFILES.get(str(profile), {}).items()
    ]
    own = [(name, v, layer.origin) for name, v in layer.values.items() if name != PROFILE]
    return [*of_profile, *own]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a pod may choose for one option.

    Attributes:
        least, most: for a number; None: no bound.
        words: the allowed choices; None: any.
    """

    least: float | None = None
    most: float | None = None
    words: tuple[str, ...] | None = None

    def problem(self, name: str, value: Any) -> str | None:
        """Why a pod may not set this value; None if it may."""
        if self.words is not None and value not in self.words:
            return f"the admin allows {_listed(self.words)}" if self.words else "the admin sets it"
        if self.least is not None and value < self.least:
            return f"the admin's bound is at least {show(name, self.least)}"
        if self.most is not None and value > self.most:
            return f"the admin's bound is at most {show(name, self.most)}"
        return None


Bounds = Mapping[str, Bound]


def parse_bounds(section: YamlValue, where: str) -> Bounds:
    """The admin's bounds, by option: ``fixed``, ``{min:, max:}``, or a list of words.

    Raises:
        OptionInvalid: anything else.
        UnknownKey: no option has this name.
    """
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise OptionInvalid(f"{where}: must be a mapping of options")
    return {name: _bound(name, value, where) for name, value in section.items()}


def _bound(name: str, value: YamlValue, where: str) -> Bound:
    if name not in _EVERY:
        raise UnknownKey(f"unknown option `{where}.{name}`{nearest(name, list(_EVERY))}")
    if value == "fixed":
        return Bound(words=())
    if isinstance(value, list):
        words = tuple(_value(name, word, where) for word in value)
        if words and all(isinstance(word, str) for word in words):
            return Bound(words=words)
    elif isinstance(value, dict) and value and set(value) <= {"min", "max"}:
        limits = {key: _value(name, limit, where) for key, limit in value.items()}
        if all(isinstance(limit, int | float) for limit in limits.values()):
            return Bound(limits.get("min"), limits.get("max"))
    raise OptionInvalid(
        f"{where}.{name}: must be `fixed`, a list of what is allowed, or {{min: , max: }}"
    )


def refuse_out_of_bounds(layer: Layer, bounds: Bounds, where: str) -> None:
    """Refuse options beyond the admin's bounds, whether a pod sets them or its profile does.

    Raises:
        OptionRefused: naming the option, the value and the bound.
    """
    for name, value, origin in _expanded(layer):
        if name in bounds and (problem := bounds[name].problem(name, value)):
            by = f" (by the {origin})" if origin != layer.origin else ""
            raise OptionRefused(f"{where}.{name}: {show(name, value)}{by}: {problem}")


def show(name: str, value: Any) -> str:
    """A value as people write it."""
    if isinstance(value, tuple):
        return " ".join(value)
    if not name.endswith("Bytes") or value is None:
        return f"{value:g}" if isinstance(value, float) else str(value)
    for unit, size in (("Pi", PIB), ("Ti", TIB), ("Gi", GIB), ("Mi", MIB)):
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return str(value)


def origin_notes(spec: PersistenceSpec) -> list[str]:
    """One line for each volume with options that are not the defaults: value and origin."""
    return [
        f"volume {volume.label}: "
        + ", ".join(
            f"{name}={show(name, getattr(volume.options, VOLUME_OPTIONS[name].name))} ({origin})"
            for name, origin in volume.origins.items()
        )
        for volume in spec.volumes
        if volume.origins
    ]


def range_text(metadata: Mapping[str, Any], name: str) -> str:
    """The range of a number, for messages and docs/options.md; empty for none."""
    low = metadata.get("ge", metadata.get("gt"))
    parts = []
    if low is not None:
        parts.append(f"{'more than' if 'gt' in metadata else 'at least'} {show(name, low)}")
    if "le" in metadata:
        parts.append(f"at most {show(name, metadata['le'])}")
    return ", ".join(parts)


def _listed(words: Iterable[str]) -> str:
    quoted = [f"`{word}`" for word in words]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}" if len(quoted) > 1 else quoted[0]
