"""Kubernetes quantities such as ``500m`` and ``2Gi`` (the API's resource.Quantity)."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_FORM = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?")
_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTP", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTP", 1)},
}


def parse_quantity(text: str) -> Decimal | None:
    """The number that ``text`` stands for; None where it stands for none."""
    match = _FORM.fullmatch(text)
    if match is None:
        return None
    return Decimal(match[1]) * _UNITS[match[2] or ""]


def whole_bytes(quantity: Decimal) -> int:
    """A quantity of bytes, rounded up as Kubernetes does."""
    return int(quantity.to_integral_value(ROUND_CEILING))
