"""A TCP server on loopback with a thread for each connection; subclasses say what is served."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"


class ThreadedServer(ABC):
    """Listens from the start, and serves between :meth:`start` and :meth:`stop`.

    Args:
        port: to listen on; a free one by default.
        host: the address to listen on.
    """

    def __init__(self, port: int = 0, host: str = HOST) -> None:
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()  # shut down by stop()
        self._threads: list[threading.Thread] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=128)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._listener.getsockname()[1])

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> Self:
        """Serve in threads of this process."""
        self._run(self._accept)
        return self

    def stop(self) -> None:
        """Close all connections, and the port."""
        self._ending.set()
        with self._lock:
            ends = [self._listener, *self._open]
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in list(self._threads):
            thread.join(10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def _serve(self, client: socket.socket) -> None:
        """Serve a connection until it ends, and close it."""

    def _run(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._run(self._serve, client)
