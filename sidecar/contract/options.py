"""The options of a bucket volume and of a pod, each with its default, range and cost.

This is the only table: the spec carries the options, people set them in three places
(:mod:`sidecar.control.catalogue.options`), and docs/options.md lists them. Standard library only,
because process 1 loads this.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from sidecar.units import GIB, MIB, PIB

TransportName = Literal["kernel", "libfuse"]
Healing = Literal["resend", "remount"]
CacheName = Literal["none", "disk", "memory", "node"]
ReadWhole = Literal["never", "models", "always"]

MOST_BYTES: Final = PIB
"""The largest size. A number that no disk has is a mistake."""
NAMES_READ_ONLY_S: Final = 60.0
NAMES_WRITABLE_S: Final = 1.0


def _option(default: Any, about: str, costs: str, unset: str = "", **limits: float) -> Any:
    """A field that people may set.

    Args:
        about: what it does, for docs/options.md.
        costs: what a higher value costs.
        unset: what None means.
        limits: on a number, under pydantic's names.
    """
    return field(
        default=default, metadata={"about": about, "costs": costs, "unset": unset, **limits}
    )


class Checked:
    """A part of a spec.

    What somebody wrote of it is checked by pydantic: keys, types, and what the fields' metadata has
    under pydantic's names, such as limits of numbers.
    """

    __slots__ = ()
    __pydantic_config__: ClassVar = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(Checked):
    """How one bucket is served. Sizes in bytes, times in seconds; docs/options.md explains each."""

    memory_bytes: int | None = _option(
        None,
        "Content in memory: read windows, readahead.",
        "Memory of the sidecar.",
        "a share of the container's limit",
        ge=16 * MIB,
        le=MOST_BYTES,
    )
    part_bytes: int = _option(
        8 * MIB,
        "A part of an upload or of readahead.",
        "Memory: each connection has one.",
        ge=5 * MIB,
        le=GIB,
    )
    spool_bytes: int = _option(
        10 * GIB,
        "What was written and is not in the bucket yet; beyond it writes get ENOSPC.",
        "Disk of the node.",
        ge=0,
        le=MOST_BYTES,
    )
    cache: CacheName = _option(
        "none",
        "Keeps what was read: on the pod's disk, in memory, or on the node's disk for its pods.",
        "A first read is written there too.",
    )
    cache_bytes: int | None = _option(
        None,
        "Size of the pod's cache. That of a node's cache is the admin's.",
        "Disk, or memory with `cache: memory`.",
        "in a pod 10Gi, in memory 1Gi; elsewhere by the room on the disk",
        ge=64 * MIB,
        le=MOST_BYTES,
    )
    names_s: float | None = _option(
        None,
        "How long names and attributes are believed.",
        "Until then others' changes are not seen; 0 asks the store each time.",
        "60 if the volume is read-only, else 1",
        ge=0,
        le=86_400,
    )
    read_whole: ReadWhole = _option(
        "models",
        "Which files of a read-only volume are brought whole once they are read out of order: "
        "none, those named as a model's weights (safetensors, gguf, pt, pth, ckpt, onnx), or all.",
        "Room in the page cache for the whole file, half of the sidecar's limit of memory at most.",
    )
    warm_list: tuple[str, ...] = _option(
        (),
        "Folders whose names and attributes are read at the start, with all below; `.` is all.",
        "Listings; what is not used within `namesSeconds` is asked for again.",
        "none",
    )
    warm_read: tuple[str, ...] = _option(
        (),
        "Patterns of files that are read at the start, in this order; `**` is any folders.",
        "Requests beside the experiment's first ones.",
        "none",
    )
    warm_learned: str | None = _option(
        None,
        "A label: what the first run with it reads first is noted in the outputs volume "
        "(`.mount-sidecar/learned`), and read at the start of later runs with it.",
        "As `warmRead`.",
        "nothing is noted",
    )
    warm_bytes: int = _option(
        10 * GIB,
        "What `warmRead` and `warmLearned` may read; not more than the cache has room for, or "
        "without one the page cache.",
        "Room in the cache.",
        ge=0,
        le=MOST_BYTES,
    )
    warm_s: float = _option(
        0.0,
        "How long the experiment's start waits for all of that, within `readyTimeoutSeconds`.",
        "A later start.",
        ge=0,
        le=86_400,
    )
    save_s: float = _option(
        60.0,
        "How often files that stay open are saved.",
        "An upload of the changed parts each time.",
        gt=0,
        le=86_400,
    )
    retry_s: float = _option(
        30.0,
        "How long an outage of the store is waited out before EIO.",
        "Programs hang that long.",
        ge=0,
        le=86_400,
    )
    healing: Healing = "resend"  # `remount`: as on a kernel before Linux 6.9, for tests
    transport: TransportName = _option(
        "kernel",
        "How the kernel is spoken to: directly, or through libfuse.",
        "`libfuse` reads at half the rate.",
    )

    @property
    def warms(self) -> bool:
        """Whether something is read at the start."""
        return bool(self.warm_list or self.warm_read or self.warm_learned)

    def names_lifetime_s(self, *, read_only: bool) -> float:
        """How long names and attributes are believed, in seconds."""
        if self.names_s is not None:
            return self.names_s
        return NAMES_READ_ONLY_S if read_only else NAMES_WRITABLE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Times(Checked):
    """Times in seconds, of a pod.

    Attributes:
        grace_margin_s: the part of ``grace_s`` that is kept for unmounting and ending.
    """

    ready_timeout_s: float = _option(
        60.0,
        "Deadline for everything before the experiment starts.",
        "A pod that cannot start says so that much later.",
        gt=0,
        le=86_400,
    )
    grace_s: float = _option(
        60.0,
        "Added to the pod's terminationGracePeriodSeconds, for what is not saved at the end.",
        "A pod whose store is away ends that much later. Without a writable bucket it is 2.",
        gt=0,
        le=86_400,
    )
    grace_margin_s: float = field(default=5.0, metadata={"ge": 0, "le": 86_400})
