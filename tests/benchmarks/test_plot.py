"""The colors of a plot's bars, which need no library that draws."""

from __future__ import annotations

from benchmarks import plot
from benchmarks.peers import OUR_DISK_CACHE, OUR_MOUNTS


def test_there_is_a_color_for_each_mount_of_ours() -> None:
    """With a disk cache and another clone (``--beside``) there are four in one panel."""
    ours = [*(mount.name for mount in OUR_MOUNTS), OUR_DISK_CACHE.name, f"{OUR_MOUNTS[0].name} 2"]
    colors = plot.colors_of([*ours, "geesefs", "floor client"], {"geesefs"})
    assert len(colors) == 6
    assert {*colors[4:]}.isdisjoint(colors[:4])
