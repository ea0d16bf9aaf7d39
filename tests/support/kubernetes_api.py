"""A Kubernetes API server for tests: real HTTP, versioned objects, and faults on demand.

It stores what the product uses (events, pods and their status, secrets, webhook
configurations), gives every write a new resourceVersion, refuses a write with an old one
(409), streams watches, and returns scripted answers.
"""

from __future__ import annotations

import copy
import json
import queue
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.contract.pod import SERVICE_ACCOUNT_VARIABLE
from tests.support.servers import TlsFiles

Json = dict[str, Any]

_WATCH_IDLE_S = 30.0
TOKEN = "token-of-the-test"
DROP = "drop"
"""In a watch: break the connection."""


class Fault(NamedTuple):
    """A scripted answer for the next ``times`` matching requests."""

    method: str
    path: re.Pattern[str]
    status: int
    headers: dict[str, str]


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    query: str
    body: Any
    status: int
    token: str


class KubernetesApi:
    """The server; a context manager. ``objects`` maps a path to an object.

    Args:
        tls: of the server; None: plain HTTP.
    """

    def __init__(self, tls: TlsFiles | None = None) -> None:
        self.tls = tls
        self.objects: dict[str, Json] = {}
        self.asked: list[Asked] = []
        self.watches_opened = 0
        self.hang = threading.Event()  # while set, no request is answered
        self._released = threading.Event()
        self._faults: list[Fault] = []
        self._watches: list[queue.Queue[Any]] = []
        self._version = 100
        self.lock = threading.Condition()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> KubernetesApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang.clear()
        self._released.set()
        self.end_watches()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def kubeconfig(self, folder: Path) -> Path:
        """A kubeconfig of this server, for the variable KUBECONFIG."""
        file = folder / "kubeconfig"
        server = {"server": f"http://127.0.0.1:{self.port}"}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        file.write_text(json.dumps(document))
        return file

    def service_account(self, folder: Path) -> dict[str, str]:
        """The environment of a pod, with the files that a kubelet mounts."""
        assert self.tls is not None
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(TOKEN)
        shutil.copy(self.tls.certificate, folder / "ca.crt")
        return {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.port),
            SERVICE_ACCOUNT_VARIABLE: str(folder),
        }

    # --- what a test does -----------------------------------------------------------------

    def put(self, path: str, document: Json) -> Json:
        """Store an object, as another client would, and notify the watches."""
        with self.lock:
            self._version += 1
            stored = copy.deepcopy(document)
            stored.setdefault("metadata", {})["resourceVersion"] = str(self._version)
            change = "MODIFIED" if path in self.objects else "ADDED"
            self.objects[path] = stored
            for watch in self._watches:
                watch.put({"type": change, "object": stored})
            self.lock.notify_all()
            return stored

    def fail(self, method: str, path: str, status: int, *, times: int = 1, **headers: str) -> None:
        """Answer the next matching requests with ``status``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.lock:
            self._faults += [Fault(method, re.compile(path), status, named)] * times

    def say_to_watches(self, event: Any) -> None:
        """Send one event, or DROP, to every watch."""
        with self.lock:
            for watch in self._watches:
                watch.put(event)

    def end_watches(self) -> None:
        """End every watch regularly, as a server does after some minutes."""
        self.say_to_watches(None)

    def wait_for(self, done: Any, what: str, timeout_s: float = 30.0) -> None:
        """Wait for ``done()``, which is called after every request."""
        with self.lock:
            if not self.lock.wait_for(done, timeout_s):
                lines = "\n".join(f"{a.method} {a.path} {a.status}" for a in self.asked)
                raise AssertionError(f"not within {timeout_s} s: {what}\n{lines}")

    def requests(self, method: str, path: str) -> list[Asked]:
        """The requests so far."""
        return [a for a in self.asked if a.method == method and re.search(path, a.path)]

    def events(self) -> list[Json]:
        """The stored events, oldest first."""
        return [document for path, document in self.objects.items() if "/events/" in path]

    # --- what the handler does -----------------------------------------------------------------

    def answer(
        self, method: str, path: str, query: str, body: Any, token: str
    ) -> tuple[int, Json, Json]:
        """(status, body, headers) of one request."""
        with self.lock:
            for index, fault in enumerate(self._faults):
                if fault.method == method and fault.path.search(path):
                    del self._faults[index]
                    reply = (fault.status, _status(fault.status), fault.headers)
                    break
            else:
                reply = (*self._apply(method, path, query, body), {})
            self.asked.append(Asked(method, path, query, body, reply[0], token))
            self.lock.notify_all()
            return reply

    def _apply(self, method: str, path: str, query: str, body: Any) -> tuple[int, Json]:
        status_of = path.removesuffix("/status")
        if method == "POST":
            name = body["metadata"]["name"]
            if f"{path}/{name}" in self.objects:
                return 409, _status(409)
            return 201, self.put(f"{path}/{name}", body)
        if method == "GET" and path.endswith("/pods"):
            items = [o for p, o in self.objects.items() if p.startswith(f"{path}/")]
            version = {"resourceVersion": str(self._version)}
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": version, "items": items}
        found = self.objects.get(status_of)
        if found is None:
            return 404, _status(404)
        if method == "GET":
            return 200, found
        expected = (body.get("metadata") or {}).get("resourceVersion")
        if expected not in (None, found["metadata"]["resourceVersion"]):
            return 409, _status(409)
        return 200, self.put(status_of, _merged(found, body))

    @contextmanager
    def watch(self) -> Iterator[queue.Queue[Any]]:
        events: queue.Queue[Any] = queue.Queue()
        with self.lock:
            self._watches.append(events)
            self.watches_opened += 1
            self.lock.notify_all()
        try:
            yield events
        finally:
            with self.lock:
                self._watches.remove(events)

    def stall(self) -> None:
        if self.hang.is_set():
            self._released.wait()


def _merged(found: Any, patch: Any) -> Any:
    """A part of strategic merge: lists of mappings merge by their ``name`` or ``type``."""
    if isinstance(found, dict) and isinstance(patch, dict):
        merged = dict(found)
        for key, value in patch.items():
            merged[key] = _merged(found[key], value) if key in found else value
        return merged
    if isinstance(found, list) and isinstance(patch, list):
        for key in ("type", "name"):
            if all(isinstance(item, dict) and key in item for item in [*found, *patch]):
                by_key = {item[key]: item for item in found}
                for item in patch:
                    by_key[item[key]] = _merged(by_key.get(item[key], {}), item)
                return list(by_key.values())
    return patch


def _status(code: int) -> Json:
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: KubernetesApi) -> None:
        self.api = api
        self._context = None if api.tls is None else api.tls.server_context()
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connected, address = super().get_request()
        if self._context is not None:  # the handshake is the handler's thread's
            connected = self._context.wrap_socket(
                connected, server_side=True, do_handshake_on_connect=False
            )
        return connected, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing for a client that was killed."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if "watch=true" in query.lower():
            status, body, headers = self.server.api.answer("WATCH", path, query, None, self._token)
            if status in (200, 404):  # 404: a watch of a list, which has no object at its path.
                self._stream()
                return
            self._reply(status, body, headers)
            return
        self._plain("GET")

    def do_POST(self) -> None:
        self._plain("POST")

    def do_PATCH(self) -> None:
        self._plain("PATCH")

    def do_PUT(self) -> None:
        self._plain("PUT")

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _plain(self, method: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.api.stall()
        path, _, query = self.path.partition("?")
        self._reply(*self.server.api.answer(method, path, query, body, self._token))

    def _reply(self, status: int, body: Json, headers: dict[str, str]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        with self.server.api.watch() as events:
            while True:
                event = events.get(timeout=_WATCH_IDLE_S)
                if event is None:
                    self.wfile.write(b"0\r\n\r\n")
                    return
                if event == DROP:
                    self.wfile.write(b'40\r\n{"type": "MODI')
                    self.close_connection = True
                    return
                line = json.dumps(event).encode() + b"\n"
                self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Print nothing."""
