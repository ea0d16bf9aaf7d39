"""Listening sockets. Standard library only."""

from __future__ import annotations

import os
import socket
from typing import Final

from sidecar.errors import PortInUse
from sidecar.units import KIB

BACKLOG: Final = 1024
"""How many connections the kernel keeps until somebody accepts them."""
_ANY: Final = "::"
_SOCKET_BUFFER_BYTES: Final = 128 * KIB
"""The kernel's buffers of a connection, which it would otherwise let grow to megabytes."""


def listen(host: str, port: int, hint: str) -> socket.socket:
    """A listening socket. ``::`` takes IPv4, too; on a node without IPv6 it is IPv4 alone.

    Args:
        host: the address to listen on.
        port: 0 picks a free one.
        hint: what the reader of the error can do.

    Raises:
        PortInUse: the port is taken, or the address does not belong to this machine.
    """
    both = host == _ANY and socket.has_dualstack_ipv6()
    if host == _ANY and not both:
        host = ""  # any address of IPv4
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        # Without the text that create_server() adds. An unknown name has no errno.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise PortInUse(f"cannot listen on {host} port {port}: {reason}", hint) from None
    # Accepted sockets inherit them.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_BYTES)
    return listener
