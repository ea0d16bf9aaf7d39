"""The admission server and clients that mean no good: the API server is answered meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.units import MIB
from tests.control.webhook.server import NAME, Webhook, recorded, review
from tests.support.many_clients import (
    DrippingClients,
    connect,
    descriptor_count,
    is_closed,
    is_read,
    many_descriptors,
    resident_bytes,
    thread_count,
)
from tests.support.waiting import wait_until

CONNECTIONS = 200
PAGE_CONNECTIONS = 50
OTHER_DESCRIPTORS = 40
THREADS = 10
BODIES = 40
BODY_BYTES = 4 * MIB
HEAD = b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def webhook(tmp_path: Path) -> Iterator[Webhook]:
    with Webhook(tmp_path) as server:
        assert_answers(server)  # what it loads for that is loaded
        server.page("/metrics")
        yield server


def assert_answers(webhook: Webhook) -> None:
    with contextlib.closing(webhook.connect()) as connection:
        response = review(connection, recorded("create-by-job-controller"))
    assert response["patchType"] == "JSONPatch"
    assert json.loads(webhook.page("/livez")) == {"alive": True}
    assert json.loads(webhook.page("/startupz"))["ready"] is True


def secured(webhook: Webhook) -> ssl.SSLSocket:
    """A connection after the handshake."""
    context = ssl.create_default_context(cadata=webhook.pair.authority.decode())
    return context.wrap_socket(connect(webhook.port), server_hostname=NAME)


def wait_until_alone(webhook: Webhook) -> None:
    wait_until(
        lambda: descriptor_count(webhook.process.pid) <= OTHER_DESCRIPTORS, "the clients are gone"
    )


def test_thousands_of_clients_that_drip_into_the_handshake(webhook: Webhook) -> None:
    pid = webhook.process.pid
    before_bytes = resident_bytes(pid)
    with many_descriptors(5000), DrippingClients(webhook.port, 2000) as clients:
        clients.wait_for_rounds(1)
        for _ in range(5):
            assert_answers(webhook)
            assert descriptor_count(pid) <= CONNECTIONS + PAGE_CONNECTIONS + OTHER_DESCRIPTORS
            assert thread_count(pid) <= THREADS
            assert resident_bytes(pid) < before_bytes + 48 * MIB
    wait_until_alone(webhook)
    assert_answers(webhook)
    assert resident_bytes(pid) < before_bytes + 48 * MIB


def test_pages_are_answered_while_clients_drip(webhook: Webhook) -> None:
    with many_descriptors(5000), DrippingClients(webhook.http_port, 2000) as clients:
        clients.wait_for_rounds(1)
        for _ in range(5):
            assert_answers(webhook)
    wait_until_alone(webhook)


def test_who_says_nothing_is_sent_away(webhook: Webhook) -> None:
    """Before the handshake and after it; who asked something is kept for the next review."""
    plain = [connect(webhook.port) for _ in range(20)]
    silent = [secured(webhook) for _ in range(20)]
    asked = webhook.connect()
    review(asked, recorded("update"))
    try:
        assert asked.sock is not None
        for client in (*plain, *silent):
            wait_until(lambda client=client: is_closed(client), "an idle connection is closed")
        assert not is_closed(asked.sock)
    finally:
        for client in (*plain, *silent):
            client.close()


def test_a_body_that_drips_is_refused(webhook: Webhook) -> None:
    with secured(webhook) as client:
        client.sendall(HEAD % 100_000)
        said = b""

        def refused() -> bool:
            nonlocal said
            client.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                client.send(b" ")
                said += client.recv(1000)
            return b"\r\n\r\n" in said

        wait_until(refused, "it is refused")
    assert said.startswith(b"HTTP/1.1 408 Request Timeout\r\n")


def test_forty_large_bodies_that_never_end(webhook: Webhook) -> None:
    pid = webhook.process.pid
    before_bytes = resident_bytes(pid)
    part = b" " * (BODY_BYTES - 1)

    def send_all_but_a_byte() -> None:
        with contextlib.suppress(OSError), secured(webhook) as client:  # it may be dropped
            client.sendall(HEAD % BODY_BYTES + part)
            client.recv(1)

    senders = [threading.Thread(target=send_all_but_a_byte) for _ in range(BODIES)]
    for sender in senders:
        sender.start()
    most_bytes = 0
    while any(sender.is_alive() for sender in senders):
        assert_answers(webhook)
        most_bytes = max(most_bytes, resident_bytes(pid))
    assert most_bytes < before_bytes + 80 * MIB
    wait_until_alone(webhook)
    assert_answers(webhook)
    assert resident_bytes(pid) < before_bytes + 24 * MIB


def test_forty_large_bodies_that_end(webhook: Webhook) -> None:
    """Each is JSON that takes as much memory as JSON can."""
    pid = webhook.process.pid
    before_bytes = resident_bytes(pid)
    body = b"[" + b"[]," * (BODY_BYTES // 3 - 2) + b"[]]"
    statuses: list[bytes] = []

    def send() -> None:
        with contextlib.suppress(OSError), secured(webhook) as client:
            client.settimeout(60)
            client.sendall(HEAD % len(body) + body)
            statuses.append(client.recv(100).partition(b"\r\n")[0])

    senders = [threading.Thread(target=send) for _ in range(BODIES)]
    for sender in senders:
        sender.start()
    most_bytes = 0
    while any(sender.is_alive() for sender in senders):
        assert_answers(webhook)
        most_bytes = max(most_bytes, resident_bytes(pid))
    assert b"HTTP/1.1 400 Bad Request" in statuses
    assert {status.split()[1] for status in statuses if status} <= {b"400", b"503", b"408"}
    assert most_bytes < before_bytes + 80 * MIB
    wait_until_alone(webhook)
    assert_answers(webhook)
    assert resident_bytes(pid) < before_bytes + 24 * MIB


def test_requests_of_one_record(webhook: Webhook) -> None:
    """TLS decrypts it as a whole: what is left of it, no selector sees."""
    body = recorded("update")
    with secured(webhook) as client:
        client.settimeout(60)
        client.sendall((HEAD % len(body) + body) * 4 + b"GET /other HTTP/1.1\r\n\r\n")
        answers = b"".join(iter(lambda: client.recv(65536), b""))
    assert answers.count(b"HTTP/1.1 200 OK") == 4
    assert answers.count(b"HTTP/1.1 404 ") == 1


def test_after_sigterm_everybody_is_served_and_sent_elsewhere(webhook: Webhook) -> None:
    """The API server learns late that a replica goes, and sends no review a second time."""
    asked = webhook.connect()
    review(asked, recorded("update"))
    webhook.process.send_signal(signal.SIGTERM)
    wait_until(lambda: sends_elsewhere(webhook.connect()), "it knows that it goes")
    assert sends_elsewhere(asked)
    assert webhook.stop() == 0


def test_what_has_begun_is_answered_when_it_stops(webhook: Webhook) -> None:
    body = recorded("create-by-job-controller")
    half = len(body) // 2
    with secured(webhook) as sending:
        sending.sendall(HEAD % len(body) + body[:half])
        asked = webhook.connect()
        review(asked, recorded("update"))
        wait_until(lambda: is_read(sending), "the first half is read")
        webhook.process.send_signal(signal.SIGINT)
        wait_until(lambda: not listens(webhook), "it takes no new connection")
        assert asked.sock is not None
        wait_until(lambda: is_closed(asked.sock), "who asks nothing is sent away")
        sending.sendall(body[half:])
        sending.settimeout(60)
        answer = b"".join(iter(lambda: sending.recv(65536), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nConnection: close" in head
    assert json.loads(content)["response"]["allowed"] is True
    assert webhook.process.wait(timeout=60) == 0


def sends_elsewhere(connection: http.client.HTTPConnection) -> bool:
    """Whether the answer asks for a new connection; allowed it is in any case."""
    connection.request("POST", "/mutate", recorded("create-by-job-controller"))
    answer = connection.getresponse()
    assert json.loads(answer.read())["response"]["allowed"] is True
    return answer.headers["Connection"] == "close"


def listens(webhook: Webhook) -> bool:
    try:
        socket.create_connection(("127.0.0.1", webhook.port)).close()
    except ConnectionRefusedError:
        return False
    return True
