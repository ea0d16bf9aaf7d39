"""Listings: `ls -lR` of many objects."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks import lists, page
from benchmarks.datasets import Names
from benchmarks.failure import BenchFailure
from benchmarks.lists import Client
from benchmarks.measure import PEAK_PSS, Baseline, Metric, Values, cost, run_all
from benchmarks.networks import PLAIN, Network
from benchmarks.others import FAST
from benchmarks.peers import Mount, Peer, Place
from benchmarks.servers import Server

RAW_LIST = "raw LIST"
S3FS_LIST = "LIST through s3fs"

LISTING = Metric("listing_s", "s", "lower")
ENTRIES = Metric("entries_per_s", "entries/s", "higher")
CPU_US_EACH = Metric("cpu_us_per_entry", "CPU-us/entry", "lower")
LISTS = Metric("list_requests", "LISTs", "lower")
HEADS = Metric("head_requests", "HEADs", "lower")


@dataclass(frozen=True, slots=True)
class Listing:
    """``ls -lR`` of a tree, cold."""

    dataset: Names
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (LISTING, ENTRIES, CPU_US_EACH, LISTS, HEADS, PEAK_PSS)

    @property
    def name(self) -> str:
        name = "list-tree" if self._is_tree else "list-flat"
        return f"{name}{self.network.suffix}"

    @property
    def title(self) -> str:
        where = f"{self.dataset.directories} director{'ies' if self._is_tree else 'y'}"
        return f"ls -lR of {self.dataset.count} objects in {where}, cold{self.network.words}"

    @property
    def _is_tree(self) -> bool:
        return self.dataset.directories > 1

    def on_peer(self, place: Place) -> Values:
        command = ["ls", "-lR", "--color=never"]
        with place.mounted() as mount:
            folder = mount.path / self.dataset.folder
            before = _requests(mount)
            _, taken = cost(mount, lambda: run_all([[*command, str(folder)]]))
            counts = {name: count - before[name] for name, count in _requests(mount).items()}
            found = sum(1 for path in folder.rglob("*.txt"))
        if found != self.dataset.count:
            raise BenchFailure(f"lists {found} files, not {self.dataset.count}")
        return {
            LISTING.name: taken.wall_s,
            ENTRIES.name: self.dataset.count / taken.wall_s,
            CPU_US_EACH.name: taken.cpu_s * 1e6 / self.dataset.count,
            **counts,
            PEAK_PSS.name: taken.peak_pss_mib,
        }

    def baselines(self) -> Mapping[str, Baseline]:
        clients: dict[str, Client] = {RAW_LIST: "http"}
        if self.network.store == "s3":
            clients[S3FS_LIST] = "s3fs"
        return {
            name: functools.partial(self._raw, client=client) for name, client in clients.items()
        }

    def _raw(self, server: Server, *, client: Client) -> Values:
        root = f"{self.dataset.folder}/"
        # The root, too: a file system must list it to find the directories.
        folders = [root, *(root + prefix for prefix in self.dataset.prefixes)]
        listed = lists.run(server.endpoint, folders, client)
        if listed.objects != self.dataset.count:
            raise BenchFailure(f"LIST gave {listed.objects} objects, not {self.dataset.count}")
        return {
            LISTING.name: listed.wall_s,
            ENTRIES.name: listed.objects / listed.wall_s,
            LISTS.name: listed.requests,
        }


def _requests(mount: Mount) -> dict[str, float]:
    """Requests so far, by metric; empty for other programs, which do not count them."""
    if mount.status_file is None:
        return {}
    return {
        LISTS.name: page.requests(mount, "list"),
        HEADS.name: page.requests(mount, "head"),
    }
