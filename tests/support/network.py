"""A pod's own network: a namespace with loopback only, and TCP ports forwarded in and out.

The sidecar's port is fixed and open to its whole network; in its own network it conflicts with
nobody and nobody else reaches it. The tests' servers have the same address inside as outside,
so that credentials, tokens and signatures are valid.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import socketserver
import struct
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

HOST: Final = "127.0.0.1"
_PIECE_BYTES = 64 * 1024
# include/uapi/linux/sched.h, sockios.h, if.h, mount.h
_CLONE_NEWNET, _SIOCSIFFLAGS, _IFF_UP = 0x40000000, 0x8914, 1
_CLONE_NEWNS, _MS_BIND, _MS_PRIVATE_ALL = 0x20000, 4096, 0x44000

_libc = ctypes.CDLL(None, use_errno=True)  # os.setns() is new in Python 3.12.

_T = TypeVar("_T")


class Network:
    """A network namespace; it ends when it is closed and the last process in it has ended."""

    def __init__(self) -> None:
        self._namespace = _in_a_thread(make_namespace)
        self._relays: list[_Relay] = []

    @property
    def path(self) -> str:
        """The namespace's file, for podman's ``--network ns:PATH``."""
        return f"/proc/{os.getpid()}/fd/{self._namespace}"

    def bring_in(self, port: int) -> None:
        """Make a server outside reachable inside, on the same port of 127.0.0.1."""
        relay = self._inside(lambda: _Relay(port, lambda: socket.create_connection((HOST, port))))
        self._serve(relay)

    def bring_out(self, port: int) -> int:
        """A port of 127.0.0.1 outside that leads to this port inside, which may open later."""
        relay = _Relay(0, lambda: self._inside(lambda: socket.create_connection((HOST, port))))
        self._serve(relay)
        return int(relay.server_address[1])

    def close(self) -> None:
        """Stop forwarding and close the namespace."""
        for relay in self._relays:
            relay.shutdown()
            relay.server_close()
        os.close(self._namespace)

    def _serve(self, relay: _Relay) -> None:
        self._relays.append(relay)
        threading.Thread(target=relay.serve_forever, args=(0.02,), daemon=True).start()

    def _inside(self, make: Callable[[], _T]) -> _T:
        """Call ``make`` in the namespace; a socket that it creates stays in there."""

        def enter_and_make() -> _T:
            _check(_libc.setns(self._namespace, _CLONE_NEWNET))
            return make()

        return _in_a_thread(enter_and_make)


class _Relay(socketserver.ThreadingTCPServer):
    """Listens on a port of 127.0.0.1 and forwards each connection to a new one."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, connect: Callable[[], socket.socket]) -> None:
        super().__init__((HOST, port), _Handler)
        self.connect = connect


class _Handler(socketserver.BaseRequestHandler):
    server: _Relay
    request: socket.socket

    def handle(self) -> None:
        """Forward bytes both ways until both sides have ended."""
        with contextlib.suppress(OSError), self.server.connect() as other:
            back = threading.Thread(target=_pass, args=(other, self.request), daemon=True)
            back.start()
            _pass(self.request, other)
            back.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    """Forward bytes, and then the end of the stream."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            target.sendall(piece)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def set_up_loopback() -> None:
    """Set loopback up in this thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def replace_file(path: str, content: str) -> None:
    """Give a file other content, for this process and its children only.

    From now on this process has a mount namespace of its own.
    """
    _check(_libc.unshare(_CLONE_NEWNS))
    _check(_libc.mount(b"none", b"/", None, _MS_PRIVATE_ALL, None))
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(content)
        file.flush()
        _check(_libc.mount(file.name.encode(), path.encode(), None, _MS_BIND, None))


def _in_a_thread(work: Callable[[], _T]) -> _T:
    """Run it in a new thread, because setns(2) changes the calling thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def make_namespace() -> int:
    """A descriptor of a new namespace, with loopback up."""
    _check(_libc.unshare(_CLONE_NEWNET))
    set_up_loopback()
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
