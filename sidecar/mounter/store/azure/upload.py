"""Uploads in parts to Azure: staged blocks, and the list of them. Imports no SDK."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from sidecar.mounter.store.azure.client import AzureClient
from sidecar.mounter.store.interface import Condition, Content, ObjectInfo, Properties


class AzureUpload:
    """An :class:`~sidecar.mounter.store.interface.Upload`: blocks, then the list of them.

    Args:
        series: the beginning of its blocks' names.
        sizes: the parts that the store has: number to bytes.
        properties, tags: of the blob that it will make.
    """

    ordered_parts = False

    def __init__(
        self,
        store: AzureClient,
        key: str,
        metadata: Mapping[str, str],
        series: str,
        sizes: dict[int, int],
        properties: Properties,
        tags: str,
    ) -> None:
        self._store = store
        self._key = key
        self._metadata = metadata
        self._series = series
        self._sizes = sizes
        self._properties = properties
        self._tags = tags

    @property
    def state(self) -> Mapping[str, Any]:
        """As :attr:`Upload.state`."""
        return {
            "series": self._series,
            "metadata": dict(self._metadata),
            "properties": dict(self._properties),
            "tags": self._tags,
        }

    def put_part(self, number: int, content: Content) -> str:
        """As :meth:`Upload.put_part`."""
        name = block_name(self._series, number)
        self._store.put_block(self._key, name, content, self._properties)
        self._sizes[number] = len(content)
        return ""

    def complete(
        self,
        condition: Condition | None = None,
        *,
        parts: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """As :meth:`Upload.complete`."""
        sent = sorted(self._sizes.items())[:parts]
        return self._store.commit_blocks(
            self._key,
            [block_name(self._series, number) for number, _ in sent],
            sum(size for _, size in sent),
            self._metadata if metadata is None else metadata,
            condition,
            properties=self._properties,
            tags=self._tags,
        )

    def abort(self) -> None:
        """As :meth:`Upload.abort`: the store drops the blocks by itself."""
        self._sizes.clear()


def new_series() -> str:
    """A prefix for the names of one upload's blocks."""
    return os.urandom(8).hex()


def block_name(series: str, number: int) -> str:
    """The name of a block, not encoded. All are of one length, as Azure demands."""
    return f"{series}{number:08d}"
