"""Kubernetes quantities such as ``500m`` and ``2Gi`` (the API's resource.Quantity). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

_FORM = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTP", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTP", 1)},
}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as Kubernetes writes it.

    Attributes:
        text: as written.
        value: the number, in the resource's base unit (bytes, cores).
    """

    text: str
    value: Decimal

    @property
    def rounded_up(self) -> int:
        """The next whole number, as Kubernetes rounds."""
        return int(self.value.to_integral_value(ROUND_CEILING))


def parse_quantity(text: str) -> Quantity:
    """Parse a quantity. Raises ValueError if ``text`` is no quantity."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ValueError(text)
    return Quantity(text, Decimal(match[1]) * _UNITS[match[2] or ""])
