"""A name with as many addresses as a test likes, all on loopback; counts connections."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest


class Resolver:
    """Replaces the system's resolver for one name; literal addresses go to the system's.

    Args:
        name: the name.
        addresses: what it leads to.

    Attributes:
        addresses: may be changed at any time.
        asked: how many times the name was resolved.
        connected: how many times a connection to each address was begun, by this process.
        before: called before each answer.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, addresses: list[str]) -> None:
        self.name = name
        self.addresses = addresses
        self.asked = 0
        self.connected: Counter[str] = Counter()
        self.before: Callable[[], object] = lambda: None
        system = socket.getaddrinfo

        def resolve(host: str, port: int, *options: int) -> list[Any]:
            if host != name:
                return system(host, port, *options)
            self.asked += 1
            self.before()
            if not self.addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            numeric = (0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
            return [system(address, port, *numeric)[0] for address in self.addresses]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        for method in ("connect", "connect_ex"):
            monkeypatch.setattr(socket.socket, method, self._counting(method))

    def _counting(self, method: str) -> Callable[..., object]:
        original = getattr(socket.socket, method)

        def connect(sock: socket.socket, address: tuple[Any, ...]) -> object:
            if sock.family in {socket.AF_INET, socket.AF_INET6}:
                self.connected[address[0]] += 1
            return original(sock, address)

        return connect


@contextlib.contextmanager
def swallowing(host: str, port: int) -> Iterator[None]:
    """An address that answers no SYN: its queue of one connection is full, and nobody takes it."""
    with (
        socket.create_server((host, port), backlog=0),
        socket.create_connection((host, port)),
    ):
        yield
