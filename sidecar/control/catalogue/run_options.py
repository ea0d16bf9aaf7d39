"""The options that a run sets, volume by volume."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sidecar.contract.spec import StoreSource
from sidecar.contract.spec_document import nearest
from sidecar.control.catalogue.catalogue import DeclaredVolume
from sidecar.control.catalogue.option_rules import (
    Bounds,
    Layer,
    parse_options,
    refuse_out_of_bounds,
)
from sidecar.errors import OptionInvalid, SidecarError, VolumeUnknown

ORIGIN: Final = "pod"
_ALL: Final = "*"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a run sets.

    Attributes:
        for_all: options of every bucket, and of the pod.
        by_volume: options by a volume's name or label.
        where: how messages name the place.
    """

    for_all: Layer = Layer(ORIGIN)
    by_volume: Mapping[str, Layer] = field(default_factory=dict)
    where: str = "options"

    def layers(self, declared: DeclaredVolume) -> list[Layer]:
        """What the run sets for a volume; the most specific layer is the last."""
        own = (self.by_volume.get(name) for name in (declared.name, declared.label))
        return [self.for_all, *(layer for layer in own if layer is not None)]


NO_OPTIONS: Final = RunOptions()


def parse_run_options(text: str, where: str, error: type[SidecarError]) -> RunOptions:
    """A run's options.

    Args:
        text: a JSON object: ``{"VOLUME": {"OPTION": VALUE}, "*": {...}}``.
        where: how messages name the place.
        error: the class to raise if the text is no such object.

    Raises:
        SidecarError: of class ``error``, or naming the option.
    """
    try:
        section = json.loads(text)
    except (ValueError, RecursionError):
        section = None
    if not isinstance(section, dict):
        raise error(
            f"{where}: must be a JSON object of volumes", """write '{"NAME": {"OPTION": VALUE}}'"""
        )
    layers = {
        name: Layer(ORIGIN, parse_options(value, f"{where}: {name}", of_pod=name == _ALL))
        for name, value in section.items()
    }
    return RunOptions(layers.pop(_ALL, Layer(ORIGIN)), layers, where)


def check_run_options(
    options: RunOptions, selected: Sequence[DeclaredVolume], bounds: Bounds
) -> None:
    """Refuse options of volumes that the run has not selected, and those out of bounds.

    Raises:
        VolumeUnknown, OptionInvalid, OptionRefused.
    """
    refuse_out_of_bounds(options.for_all, bounds, f"{options.where}: {_ALL}")
    called: dict[str, list[DeclaredVolume]] = {}
    for one in selected:
        for name in (one.name, one.label):
            called.setdefault(name, []).append(one)
    for name, layer in options.by_volume.items():
        where = f"{options.where}: {name}"
        if (meant := called.get(name)) is None:
            names = [one.name for one in selected]
            raise VolumeUnknown(
                f"{where}: the run has no such volume{nearest(name, names)}",
                f"it has: {', '.join(names) or 'none'}; `{_ALL}` means all of them",
            )
        if not any(isinstance(one.source, StoreSource) for one in meant):
            raise OptionInvalid(f"{where}: only buckets have options")
        refuse_out_of_bounds(layer, bounds, where)
