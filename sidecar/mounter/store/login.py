"""The credentials that a store uses, with an epoch, so that many threads refresh them once."""

from __future__ import annotations

import threading
from typing import Generic, Protocol, TypeVar

from sidecar.mounter.store.http.forks import renew_in_child


class CredentialSource(Protocol):
    """What a store needs of :class:`.credentials.VolumeCredentials`."""

    def current(self) -> object:
        """The credentials. Raises CredentialError."""

    def refresh(self) -> bool:
        """Read them again. Whether they changed. Raises CredentialError."""


C = TypeVar("C")


class Login(Generic[C]):
    """The credentials of one store.

    Args:
        source: reads them (:mod:`.credentials`).
        kind: their class for this store.

    Attributes:
        credentials: those in use.
        epoch: counts how often they were replaced.
    """

    def __init__(self, source: CredentialSource, kind: type[C]) -> None:
        self._source = source
        self._kind = kind
        self.epoch = 0
        self.credentials = self._read()
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Make the lock anew (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._lock = threading.Lock()

    def refresh(self, seen_epoch: int, *, rejected: bool = False) -> bool:
        """Replace the credentials of ``seen_epoch``; False if there are no newer ones.

        Args:
            rejected: the store does not take what these credentials gave, such as a token that it
                considers expired: unchanged credentials can give another one.

        Raises:
            CredentialError: the secret cannot be read any more.
        """
        with self._lock:
            if self.epoch != seen_epoch:
                return True  # another thread did it meanwhile
            if not self._source.refresh() and not rejected:
                return False
            self.credentials = self._read()
            self.epoch += 1
            return True

    def _read(self) -> C:
        credentials = self._source.current()
        if not isinstance(credentials, self._kind):
            raise TypeError(f"{self._kind.__name__} expected")
        return credentials
