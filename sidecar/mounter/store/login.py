"""The credentials in use, numbered, so that many threads refresh them once."""

from __future__ import annotations

import threading
from typing import Generic, Protocol, TypeVar

from sidecar.mounter.store.http.forks import renew_in_child
from sidecar.mounter.store.secrets import Credentials


class CredentialSource(Protocol):
    """What a store needs of :class:`sidecar.mounter.store.secrets.CredentialSource`."""

    def current(self) -> Credentials:
        """The credentials. Raises CredentialError."""

    def refresh(self) -> bool:
        """Read them again; whether they changed."""


C = TypeVar("C", bound=Credentials)


class Login(Generic[C]):
    """The credentials of one store.

    Args:
        source: where they come from.
        kind: the class that this store can use.
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

    def refresh(self, seen_epoch: int) -> bool:
        """Get newer credentials than those of ``seen_epoch``; False where there are none."""
        with self._lock:
            if self.epoch != seen_epoch:
                return True  # another thread did it meanwhile
            if not self._source.refresh():
                return False
            self.credentials = self._read()
            self.epoch += 1
            return True

    def _read(self) -> C:
        credentials = self._source.current()
        if not isinstance(credentials, self._kind):
            raise TypeError(f"{self._kind.__name__} expected")
        return credentials
