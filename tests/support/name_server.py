"""A program that shows what a pod's resolver asks, in its own network with its own resolv.conf.

``python -m tests.support.name_server LOST STORE HOST KNOWN...`` resolves HOST as the worker of a
bucket of that store does, and prints the names that were asked for, as JSON. The first LOST queries
get no answer. Needs root.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading

from sidecar.contract.spec import StoreSource
from sidecar.mounter.store import network
from tests.support.network import make_namespace, replace_file

RESOLV_CONF = """nameserver 127.0.0.1
search team.svc.cluster.local svc.cluster.local cluster.local
options ndots:5
"""
_TYPE_A, _NO_SUCH_NAME = 1, 3


def main(lost: str, store: str, host: str, *known: str) -> None:
    """See above."""
    os.close(make_namespace())
    replace_file("/etc/resolv.conf", RESOLV_CONF)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    asked: list[str] = []
    threading.Thread(
        target=_serve, args=(server, set(known), asked, int(lost)), daemon=True
    ).start()
    network.set_up(StoreSource(store=store, url="", bucket="bucket"), "/nowhere")  # type: ignore[arg-type]
    socket.getaddrinfo(host, 443, 0, socket.SOCK_STREAM)
    print(json.dumps(asked))
    sys.stdout.flush()
    os._exit(0)


def _serve(server: socket.socket, known: set[str], asked: list[str], lost: int) -> None:
    """Answer queries (RFC 1035, 4.1): known names have one address of IPv4."""
    while True:
        query, client = server.recvfrom(512)
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name, question = ".".join(labels), query[12 : at + 5]
        asked.append(name)
        if len(asked) <= lost:
            continue
        answer = b""
        if name in known and query[at + 2] == _TYPE_A:
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4\x7f\0\0\1"
        status = 0 if name in known else _NO_SUCH_NAME
        head = query[:2] + bytes((0x81, 0x80 | status, 0, 1, 0, bool(answer), 0, 0, 0, 0))
        server.sendto(head + question + answer, client)


if __name__ == "__main__":
    main(*sys.argv[1:])
