"""A sidecar that cannot mount says why in one line, and leaves nothing behind."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Times, TransportName
from sidecar.contract.spec import ClaimSource, HostPathSource, Http, Volume
from tests.mount.buckets import (
    CLOUDS,
    bucket_sidecar,
    ended_with,
    in_namespace,
    make_cloud,
    refused,
)
from tests.support.clouds import Cloud, RcloneCloud, S3Cloud
from tests.support.servers import (
    AzureServer,
    GcsServer,
    HttpResponder,
    MinioServer,
    RcloneServer,
    TlsFiles,
    answer,
    free_port,
)
from tests.support.sidecar import Sidecar
from tests.support.strict_server import StrictS3Server

EXIT_USAGE = 2
EXIT_MOUNT = 3
NO_SUCH_ID = "no-such-id"
WRONG = "wrong-0123456789"


def directory_volume(path: Path, source: HostPathSource | ClaimSource) -> Volume:
    return Volume(name="local", kind="data", path=str(path), source=source)


def of(cloud: Cloud) -> str:
    """How a line names the volume."""
    return re.escape(f"volume data/train ({cloud.url()})")


def place(cloud: Cloud) -> str:
    service = {"s3": "S3 bucket", "gcs": "GCS bucket", "azure": "Azure container"}[cloud.name]
    return re.escape(f"{service} `{cloud.bucket}` at 127.0.0.1:{cloud.server.port}")


# --- the secret --------------------------------------------------------------------------


def secret_file(sidecar: Sidecar) -> str:
    return re.escape(f"secret file {sidecar.directory}/secrets/cloud/key.json")


def test_secret_file_missing(tmp_path: Path, s3: Cloud) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    (sidecar.directory / "secrets/cloud/key.json").unlink()
    refused(
        sidecar,
        EXIT_MOUNT,
        f"error SC1030 SECRET_FILE_MISSING: {of(s3)}: {secret_file(sidecar)}: "
        "no such file or directory; `kubectl create secret generic cloud "
        "--from-file=key.json=FILE` in the pod's namespace, or select other volumes",
    )


def test_secret_not_json(tmp_path: Path, s3: Cloud) -> None:
    sidecar = bucket_sidecar(tmp_path, s3, secret="AWS_ACCESS_KEY_ID=id\n")
    refused(
        sidecar,
        EXIT_MOUNT,
        f"error SC1031 SECRET_NOT_JSON: {of(s3)}: {secret_file(sidecar)}: "
        r"not JSON \(line 1, column 1\); the key of the secret must hold one JSON object",
    )


NEEDED = {
    "s3": ("AWS_SECRET_ACCESS_KEY", "add it to the secret"),
    "gcs": ("private_key", "add it to the secret"),
    "azure": ("AZURE_ACCOUNT_KEY", "give it, or `AZURE_CONNECTION_STRING`"),
}


@pytest.mark.parametrize("how", ["absent", "empty"])
def test_secret_lacks_a_key(tmp_path: Path, cloud: Cloud, how: str) -> None:
    fields = cloud.server.credentials()
    name, advice = NEEDED[cloud.name]
    for field in {name, "AZURE_CONNECTION_STRING"} & fields.keys():
        if how == "absent":
            del fields[field]
        else:
            fields[field] = ""
    sidecar = bucket_sidecar(tmp_path, cloud, secret=json.dumps(fields))
    refused(
        sidecar,
        EXIT_MOUNT,
        f"error SC1032 SECRET_KEY_MISSING: {of(cloud)}: {secret_file(sidecar)}: "
        f"`{name}` is missing or empty; {advice}",
    )


# --- the bucket and the login --------------------------------------------------------------


def test_bucket_absent(tmp_path: Path, cloud: Cloud) -> None:
    noun = {"s3": "S3 bucket", "gcs": "GCS bucket", "azure": "Azure container"}[cloud.name]
    refused(
        bucket_sidecar(tmp_path, cloud, bucket="no-such-bucket"),
        EXIT_MOUNT,
        f"error SC1042 BUCKET_NOT_FOUND: {of(cloud)}: {noun} `no-such-bucket` does not exist at "
        f"127.0.0.1:{cloud.server.port}; create it, or correct `bucket` in the catalogue",
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"AWS_ACCESS_KEY_ID": NO_SUCH_ID}, "InvalidAccessKeyId"),
        ({"AWS_SECRET_ACCESS_KEY": WRONG}, "SignatureDoesNotMatch"),
    ],
)
def test_s3_login_rejected(
    tmp_path: Path, s3: Cloud, changes: Mapping[str, str], word: str
) -> None:
    secret = json.dumps({**s3.server.credentials(), **changes})
    sidecar = bucket_sidecar(tmp_path, s3, secret=secret)
    refused(
        sidecar,
        EXIT_MOUNT,
        f"error SC1043 LOGIN_REJECTED: {of(s3)}: {place(s3)} rejects the login "
        rf"\({word}\); check the keys in the volume's secret",
    )
    assert WRONG not in sidecar.log()


def test_gcs_login_rejected(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    gcs_server: GcsServer,
) -> None:
    cloud = make_cloud(request, monkeypatch, "gcs")
    monkeypatch.setattr(gcs_server.tokens, "refuse", True)
    refused(
        bucket_sidecar(tmp_path, cloud),
        EXIT_MOUNT,
        f"error SC1043 LOGIN_REJECTED: {of(cloud)}: {place(cloud)} rejects the login "
        r"\(invalid_grant\); check the keys in the volume's secret, and the node's clock",
    )


def test_azure_login_rejected(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    azure_server: AzureServer,
) -> None:
    cloud = make_cloud(request, monkeypatch, "azure")
    wrong = base64.b64encode(WRONG.encode()).decode()
    secret = azure_server.credentials_json().replace(azure_server.account_key, wrong)
    sidecar = bucket_sidecar(tmp_path, cloud, secret=secret)
    refused(
        sidecar,
        EXIT_MOUNT,
        f"error SC1043 LOGIN_REJECTED: {of(cloud)}: {place(cloud)} rejects the login "
        r"\(AuthenticationFailed\); check the keys in the volume's secret",
    )
    assert wrong not in sidecar.log()


def test_s3_login_that_may_not_list(tmp_path: Path, s3: Cloud) -> None:
    """The tests' servers have no credentials with fewer permissions."""
    body = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"
    xml = {"Content-Type": "application/xml"}
    with HttpResponder(lambda handler: answer(handler, 403, body, xml)) as store:
        secret = json.dumps({**s3.server.credentials(), "AWS_ENDPOINT_URL": store.endpoint})
        refused(
            bucket_sidecar(tmp_path, s3, secret=secret),
            EXIT_MOUNT,
            f"error SC1041 ACCESS_DENIED: {of(s3)}: S3 bucket `{s3.bucket}` at "
            f"127.0.0.1:{store.port} denies list; grant it to the volume's credentials",
        )


# --- the network ---------------------------------------------------------------------------


def test_an_endpoint_that_refuses_and_one_that_never_answers(tmp_path: Path, s3: Cloud) -> None:
    # Both at once, because both take the whole timeout.
    def sidecar(name: str, port: int) -> Sidecar:
        secret = s3.server.credentials_json().replace(str(s3.server.port), str(port))
        return bucket_sidecar(
            tmp_path / name, s3, secret=secret, times=Times(ready_timeout_s=8)
        ).start(wait=False)

    refusing = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sidecars = [sidecar("refusing", refusing), sidecar("silent", listener.getsockname()[1])]
        try:
            advice = "check the endpoint's address and that the pod's network lets it through"
            for one, what in zip(
                sidecars,
                [
                    f"S3 endpoint 127.0.0.1:{refusing} cannot be reached: connection refused",
                    "the store did not answer within 8 s",
                ],
                strict=True,
            ):
                ended_with(
                    one,
                    EXIT_MOUNT,
                    f"error SC1047 ENDPOINT_UNREACHABLE: {of(s3)}: {what}; {advice}",
                )
        finally:
            for one in sidecars:
                one.clean_up()


def test_an_outage_shorter_than_the_deadline_is_waited_out(tmp_path: Path) -> None:
    with MinioServer(tmp_path / "server") as server:
        server.create_bucket("late")
        server.stop()
        sidecar = bucket_sidecar(tmp_path, S3Cloud(server, "late"))
        try:
            sidecar.start(wait=False)
            status_file = sidecar.state / "status.json"
            sidecar.wait_for(lambda: status_file.exists() and "SC1047" in status_file.read_text())
            assert sidecar.volume_status("train")["error"]["code"] == "SC1047"
            assert sidecar.get("/startupz")[0] == 503
            server.start()
            sidecar.wait_ready()
            assert sidecar.volume_status("train")["error"] is None
            assert sidecar.stop() == 0
        finally:
            sidecar.clean_up()


def test_tls_not_verifiable(tmp_path: Path) -> None:
    with RcloneServer(tmp_path / "server", tls=TlsFiles(tmp_path / "tls")) as server:
        server.create_bucket("bucket")
        cloud = RcloneCloud(server, "bucket")
        refused(
            bucket_sidecar(tmp_path, cloud),
            EXIT_MOUNT,
            f"error SC1046 TLS_UNTRUSTED: {of(cloud)}: the certificate of S3 endpoint "
            f"127.0.0.1:{server.port} is not trusted: self-signed certificate; give the "
            "authority's certificate in SSL_CERT_FILE, or correct the endpoint",
        )


# --- directories -----------------------------------------------------------------------------


def local_sidecar(tmp_path: Path, volume: Volume, **settings: Any) -> Sidecar:
    return Sidecar(tmp_path / "run", [volume], times=Times(ready_timeout_s=20), **settings)


HOST = HostPathSource(host_path="/srv/data")
CLAIM = ClaimSource(claim="data-pvc")


def test_host_path_absent(tmp_path: Path) -> None:
    path = tmp_path / "absent"
    refused(
        local_sidecar(tmp_path, directory_volume(path, HOST)),
        EXIT_MOUNT,
        rf"error SC1083 PATH_MISSING: volume data/local \(/srv/data\): `{path}` does not exist; "
        "it must be mounted into the sidecar too, and a hostPath must exist on the node",
    )


def test_a_host_path_to_read_that_is_empty(tmp_path: Path) -> None:
    """As a container runtime makes one that is missing, and as it is without its NFS mount."""
    path = tmp_path / "empty"
    path.mkdir()
    volume = replace(directory_volume(path, HOST), read_only=True)
    refused(
        local_sidecar(tmp_path, volume),
        EXIT_MOUNT,
        rf"error SC1083 PATH_MISSING: volume data/local \(/srv/data\): `{path}` is empty: the "
        "hostPath does not exist on this node, or nothing is mounted there; mount it on the node, "
        "or put what is to be read there",
    )


@pytest.mark.parametrize(("source", "read_only"), [(CLAIM, True), (HOST, False)])
def test_an_empty_claim_and_one_to_write_are_no_mistake(
    tmp_path: Path, source: HostPathSource | ClaimSource, read_only: bool
) -> None:
    path = tmp_path / "empty"
    path.mkdir()
    volume = replace(directory_volume(path, source), read_only=read_only)
    with local_sidecar(tmp_path, volume) as sidecar:
        assert sidecar.stop() == 0


def test_host_path_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    refused(
        local_sidecar(tmp_path, directory_volume(path, HOST)),
        EXIT_MOUNT,
        rf"error SC1083 PATH_MISSING: volume data/local \(/srv/data\): `{path}` is not a "
        "directory; only directories are mounted",
    )


def test_claim_not_writable(tmp_path: Path) -> None:
    path = tmp_path / "claim"
    path.mkdir()
    read_only = in_namespace(f"mount --bind {path} {path}\nmount -o remount,ro,bind {path}")
    refused(
        local_sidecar(tmp_path, directory_volume(path, CLAIM), prefix=read_only),
        EXIT_MOUNT,
        rf"error SC1085 PATH_NOT_WRITABLE: volume data/local \(data-pvc\): `{path}` cannot be "
        "written: Read-only file system; declare it `readOnly: true`, or make it writable",
    )
    declared = replace(directory_volume(path, CLAIM), read_only=True)
    with local_sidecar(tmp_path, declared, prefix=read_only) as sidecar:
        assert sidecar.stop() == 0


# --- the host and the spec -------------------------------------------------------------------


def test_port_in_use(tmp_path: Path, s3: Cloud) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refused(
            bucket_sidecar(tmp_path, s3, http=Http(host="127.0.0.1", port=port)),
            EXIT_MOUNT,
            f"error SC1090 PORT_IN_USE: cannot listen on 127.0.0.1 port {port}: Address already "
            r"in use; free the port, or set another in the spec \(`http.host`, `http.port`\)",
        )


def with_default_termination_log(sidecar: Sidecar) -> list[str]:
    """From an unreadable spec no other path is known than the kubelet's."""
    return in_namespace(
        "mount -t tmpfs none /dev\ntouch /dev/termination-log /dev/null\n"
        f"mount --bind {sidecar.termination_message} /dev/termination-log"
    )


def test_spec_with_an_unknown_key(tmp_path: Path, s3: Cloud) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    sidecar.prefix = with_default_termination_log(sidecar)
    document = json.loads(sidecar.spec.to_json())
    document["times"]["ready_timeout"] = 5
    sidecar.spec_text = json.dumps(document)
    refused(
        sidecar,
        EXIT_USAGE,
        rf"error SC1011 SPEC_INVALID: {sidecar.spec_file}: unknown key `times.ready_timeout` "
        r"\(did you mean `ready_timeout_s`\?\); make it with `sidecar resolve`",
    )


def test_spec_file_missing(tmp_path: Path, s3: Cloud) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    sidecar.prefix = with_default_termination_log(sidecar)
    sidecar.spec_text = None
    refused(
        sidecar,
        EXIT_USAGE,
        rf"error SC1001 USAGE: cannot read `{sidecar.spec_file}`: No such file or directory",
    )


def test_state_directory_is_a_file(tmp_path: Path, s3: Cloud) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    sidecar.state.write_text("")
    refused(
        sidecar,
        EXIT_MOUNT,
        "error SC1086 STATE_UNUSABLE: cannot prepare the state and shared directories: "
        f"`{sidecar.state}` is a file; remove it",
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [("ro", "Read-only file system"), ("size=4k,nr_inodes=2", "No space left on device")],
)
def test_state_directory_not_writable(tmp_path: Path, s3: Cloud, options: str, reason: str) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    sidecar.state.mkdir()
    fill = "" if options == "ro" else f"touch {sidecar.state}/full"
    sidecar.prefix = in_namespace(f"mount -t tmpfs -o {options} none {sidecar.state}\n{fill}")
    refused(
        sidecar,
        EXIT_MOUNT,
        rf"error SC1086 STATE_UNUSABLE: cannot prepare `status\.json(\.new)?`: {reason}; "
        "the state and shared directories must be writable",
    )


def test_shared_directory_not_writable(tmp_path: Path, s3: Cloud) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    sidecar.shared.mkdir()
    sidecar.prefix = in_namespace(f"mount -t tmpfs -o ro none {sidecar.shared}")
    refused(
        sidecar,
        EXIT_MOUNT,
        f"error SC1086 STATE_UNUSABLE: cannot prepare `{sidecar.shared}/.sidecar`: Read-only "
        "file system; the state and shared directories must be writable",
    )


def test_not_root(tmp_path: Path, s3: Cloud) -> None:
    # The capability gives access to pytest's directories, which are private.
    sidecar = bucket_sidecar(
        tmp_path,
        s3,
        prefix=[
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
        ],
    )
    refused(
        sidecar,
        EXIT_MOUNT,
        "error SC1080 NOT_ROOT: mounting needs root, and this process has uid 65534; run the "
        "sidecar as root and privileged; the experiment needs neither",
    )


def test_no_fuse_device(tmp_path: Path, s3: Cloud) -> None:
    refused(
        bucket_sidecar(tmp_path, s3, prefix=in_namespace("mount -t tmpfs none /dev")),
        EXIT_MOUNT,
        "error SC1081 FUSE_DEVICE_MISSING: /dev/fuse does not exist; load the kernel module "
        "`fuse` on the node, and mount the device into the container",
    )


def test_fuse_device_that_may_not_be_opened(tmp_path: Path, s3: Cloud) -> None:
    # `nodev` refuses the open, as an unprivileged container's device cgroup does.
    script = "mount -t tmpfs -o nodev none /dev\nmknod /dev/fuse c 10 229"
    refused(
        bucket_sidecar(tmp_path, s3, prefix=in_namespace(script)),
        EXIT_MOUNT,
        "error SC1081 FUSE_DEVICE_MISSING: /dev/fuse cannot be opened: Permission denied; the "
        r"container must be privileged \(the device cgroup refuses it otherwise\)",
    )


def test_fuse_device_that_is_another(tmp_path: Path, s3: Cloud) -> None:
    refused(
        bucket_sidecar(tmp_path, s3, prefix=in_namespace("mount --bind /dev/null /dev/fuse")),
        EXIT_MOUNT,
        f"error SC1082 MOUNT_FAILED: {of(s3)}: cannot guard the mountpoint `{tmp_path}/m`: "
        "Invalid argument; is /dev/fuse the kernel's, and the container privileged\\?",
    )


# --- all or nothing --------------------------------------------------------------------------


def five_volumes(
    tmp_path: Path, clouds: Mapping[str, Cloud], outputs: str
) -> tuple[list[Volume], dict[str, str]]:
    for name in ("host", "claim"):
        (tmp_path / name).mkdir()
    volumes = [
        Volume(name="host", kind="data", path=str(tmp_path / "host"), source=HOST),
        Volume(name="claim", kind="data", path=str(tmp_path / "claim"), source=CLAIM),
    ]
    secrets = {}
    for name, cloud in clouds.items():
        secrets[name] = cloud.server.credentials_json()
        volumes.append(
            Volume(
                name=name,
                kind="outputs" if name == outputs else "data",
                path=str(tmp_path / "m" / name),
                source=replace(cloud.source(), secret=name),
            )
        )
    return volumes, secrets


def test_one_of_five_volumes_cannot_be_reached(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    clouds = {name: make_cloud(request, monkeypatch, name) for name in CLOUDS}
    clouds["azure"].bucket = "no-such-container"
    volumes, secrets = five_volumes(tmp_path, clouds, "azure")
    url = re.escape(clouds["azure"].url())
    refused(
        Sidecar(tmp_path / "run", volumes, secrets=secrets),
        EXIT_MOUNT,
        rf"error SC1042 BUCKET_NOT_FOUND: volume outputs/azure \({url}\): Azure container "
        f"`no-such-container` does not exist at 127.0.0.1:{clouds['azure'].server.port}; create "
        "it, or correct `bucket` in the catalogue",
    )


def test_one_of_five_volumes_fails_when_all_are_mounted(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    transport: TransportName,
    strict_s3_server: StrictS3Server,
) -> None:
    clouds = {name: make_cloud(request, monkeypatch, name) for name in CLOUDS}
    # `user` and `user/…` are two keys on S3; the gateway stores files and refuses the second.
    clouds["s3"] = S3Cloud(strict_s3_server, clouds["s3"].bucket)
    strict_s3_server.create_bucket(clouds["s3"].bucket)
    clouds["s3"].write("user", b"an object where the run's outputs need a directory")
    volumes, secrets = five_volumes(tmp_path, clouds, "s3")
    outputs_path = tmp_path / "m/s3/user/project"
    sidecar = Sidecar(
        tmp_path / "run",
        volumes,
        secrets=secrets,
        outputs_path=outputs_path,
        transport=transport,
    )
    url = re.escape(clouds["s3"].url())
    refused(
        sidecar,
        EXIT_MOUNT,
        rf"error SC1085 PATH_NOT_WRITABLE: volume outputs/s3 \({url}\): the run's outputs "
        f"directory `{outputs_path}` cannot be made: `{tmp_path}/m/s3/user` is a file; remove it, "
        "or give the run another path",
    )
    assert sidecar.log().count("msg=serving") == 3
    assert not (tmp_path / "m").exists()
