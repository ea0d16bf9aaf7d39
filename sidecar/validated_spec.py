"""The spec as ``sidecar mount`` left it for the workers: validated, so read without checks.

The library that validates costs each process a fifth of a second of CPU time to import, and a
worker's start is what programs wait for.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sidecar.spec import PersistenceSpec


def read_validated_spec(path: Path) -> PersistenceSpec:
    """The fields of the spec (not its methods), defaults included."""
    text = path.read_text()
    return cast("PersistenceSpec", json.loads(text, object_hook=lambda d: SimpleNamespace(**d)))
