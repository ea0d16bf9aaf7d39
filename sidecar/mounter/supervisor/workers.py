"""Starts workers, and keeps one in reserve that has imported everything.

Which volume a worker serves, and when it is replaced, is the volume's. Standard library only.
"""

from __future__ import annotations

from sidecar.mounter.system.channel import Message
from sidecar.mounter.system.processes import Child, Processes

_MODULE = "sidecar.mounter.worker.main"


class Workers:
    """The workers of all buckets. A worker does not know its volume until it is told to serve."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._keeps_spare = False
        self._spare: Child | None = None

    def keep_spare(self) -> None:
        """From now on have one in reserve: a start takes long while programs wait."""
        self._keeps_spare = True
        self._spare = self._start()

    def serve(self, message: Message, descriptors: tuple[int, ...]) -> Child:
        """A worker, told to serve a volume. ``message``: see :mod:`sidecar.mounter.worker.main`."""
        worker, self._spare = self._spare or self._start(), None
        worker.channel.send(message, descriptors)
        if self._keeps_spare:
            self._spare = self._start()
        return worker

    def forget(self, child: Child) -> bool:
        """Whether a child that ended was the reserve. The next is started with the next worker."""
        if child is not self._spare:
            return False
        self._spare = None
        return True

    def dismiss(self) -> list[Child]:
        """Tell the reserve to leave; the children to wait for."""
        if self._spare is None or not self._spare.running:
            return []
        self._spare.channel.send({"do": "leave"})
        return [self._spare]

    def _start(self) -> Child:
        return self._processes.start(_MODULE)
