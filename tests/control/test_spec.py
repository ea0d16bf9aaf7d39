"""Loading a spec checks the same rules as resolving one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.cli.main import main
from sidecar.contract.spec_document import load_spec
from sidecar.contract.spec_rules import SYSTEM_DIRECTORIES
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.catalogue.resolve import resolve
from sidecar.control.catalogue.selection import Selection
from sidecar.errors import ConfigError, PathOverlap, SpecInvalid
from tests.control.injection.golden import NAMES, expected
from tests.control.injection.test_golden import containers

CATALOGUE = """
data:
  images: {store: s3, bucket: 's3://images/train', secret: stores, secretKey: s3.json}
  labels: {store: gcs, bucket: 'gs://labels', mountPath: /data/labels}
  team: {existingClaim: team, mountPath: /data/team}
outputs:
  models: {store: azure, bucket: 'wasbs://models@account.blob.core.windows.net/a'}
"""
IMAGES, LABELS, TEAM, MODELS = range(4)


def document() -> dict[str, Any]:
    spec = resolve(parse_catalogue(CATALOGUE, "catalogue"), Selection(), run="user/1")
    parsed: dict[str, Any] = json.loads(spec.to_json())
    return parsed


def put(*path: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        item: Any = spec
        for key in path[:-1]:
            item = item[key]
        item[path[-1]] = value

    return change


def volume(index: int, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return put("volumes", index, key, value=value)


def source(index: int, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return put("volumes", index, "source", key, value=value)


def at(index: int, path: str) -> Callable[[dict[str, Any]], None]:
    """The bucket has another path and is mounted there."""

    def change(spec: dict[str, Any]) -> None:
        spec["volumes"][index].update(path=path, mountpoint=path)

    return change


def twice(spec: dict[str, Any]) -> None:
    spec["volumes"].insert(0, {**spec["volumes"][LABELS], "path": "/x", "mountpoint": "/x"})


PACKAGES = "/opt/sidecar/lib/python3.13/site-packages/sidecar"
MOVED = "SC1010 MOUNT_PATH_INVALID"
OVERLAP = "SC1022 PATH_OVERLAP"
INVALID = "SC1011 SPEC_INVALID"
RUN = "SC1026 RUN_PATH_INVALID"

REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "mounted over a package": (volume(IMAGES, "mountpoint", PACKAGES), MOVED),
    "mounted elsewhere": (volume(LABELS, "mountpoint", "/srv/elsewhere"), MOVED),
    "mounted over another volume": (volume(LABELS, "mountpoint", "/data/team"), MOVED),
    "mounted at the place of another": (
        volume(LABELS, "mountpoint", "/mnt/persistence/data/images"),
        MOVED,
    ),
    "mounted over status and ready": (
        volume(IMAGES, "mountpoint", "/mnt/persistence/.sidecar"),
        MOVED,
    ),
    "mounted over the shared root": (volume(IMAGES, "mountpoint", "/mnt/persistence"), MOVED),
    "a path that is relative": (at(LABELS, "data/labels"), MOVED),
    "a path that goes up": (at(LABELS, "/data/../etc"), MOVED),
    "a path with a dot": (at(LABELS, "/data/./labels"), MOVED),
    "a path with an empty part": (at(LABELS, "/data//labels"), MOVED),
    "a path that ends in a slash": (at(LABELS, "/data/labels/"), MOVED),
    "the root": (at(LABELS, "/"), MOVED),
    "a path at a package": (at(LABELS, PACKAGES), OVERLAP),
    "a path above the packages": (at(LABELS, "/opt"), OVERLAP),
    # A folder where a shell is found first, and the other name of the secrets' folder.
    "a claim before the programs": (volume(TEAM, "path", "/usr/local/sbin"), OVERLAP),
    "a claim among the secrets": (volume(TEAM, "path", "/run/sidecar/secrets/x"), OVERLAP),
    "a claim among tokens": (volume(TEAM, "path", "/var/run/secrets/azure"), OVERLAP),
    "a claim above them": (volume(TEAM, "path", "/run"), OVERLAP),
    "a claim at a package": (volume(TEAM, "path", PACKAGES), OVERLAP),
    **{f"a path at {path}": (at(LABELS, path), OVERLAP) for path in SYSTEM_DIRECTORIES},
    **{f"a path below {path}": (at(LABELS, f"{path}/x"), OVERLAP) for path in SYSTEM_DIRECTORIES},
    "the sidecar's spec": (at(LABELS, "/etc/sidecar"), OVERLAP),
    "the secrets": (at(LABELS, "/var/run/sidecar/secrets"), OVERLAP),
    "above the secrets": (at(LABELS, "/var/run"), OVERLAP),
    "the state": (at(LABELS, "/var/lib/sidecar/x"), OVERLAP),
    "status and ready": (at(LABELS, "/mnt/persistence/.sidecar"), OVERLAP),
    "a claim in the shared root": (
        volume(TEAM, "path", "/mnt/persistence/data/team"),
        OVERLAP,
    ),
    "two volumes at one path": (at(LABELS, "/data/team"), OVERLAP),
    "one volume below another": (at(LABELS, "/data/team/x"), OVERLAP),
    "one volume twice": (twice, "SC1021 DUPLICATE_SELECTION"),
    "a name that goes up": (volume(IMAGES, "name", ".."), INVALID),
    "a name with a slash": (volume(IMAGES, "name", "../../usr/lib"), INVALID),
    "a prefix that goes up": (source(IMAGES, "prefix", "train/../../other/"), INVALID),
    "a prefix with an empty part": (source(IMAGES, "prefix", "train//x/"), INVALID),
    "a prefix that begins with a slash": (source(IMAGES, "prefix", "/train/"), INVALID),
    "a prefix that does not end in one": (source(IMAGES, "prefix", "train"), INVALID),
    "a prefix of control characters": (source(IMAGES, "prefix", "a\r\nb/"), INVALID),
    "a prefix that is too long": (source(IMAGES, "prefix", "x" * 513 + "/"), INVALID),
    "a bucket with a slash": (source(IMAGES, "bucket", "images/../other"), INVALID),
    "a secret elsewhere": (source(IMAGES, "secret", "../../../etc"), INVALID),
    "a secret key elsewhere": (source(IMAGES, "secret_key", "../azure/key.json"), INVALID),
    "an account at another host": (source(MODELS, "account", "evil.example/?"), INVALID),
    "an endpoint with a login": (source(MODELS, "endpoint_suffix", "x@evil.example"), INVALID),
    "a spool that no disk has": (
        put("volumes", MODELS, "options", "spool_bytes", value=10**60),
        INVALID,
    ),
    "a run that goes up": (put("run", value="../x"), RUN),
    "outputs elsewhere": (put("outputs_path", value="/data/team/x"), RUN),
    "outputs that go up": (
        put("outputs_path", value="/mnt/persistence/outputs/models/../../x"),
        RUN,
    ),
    "outputs beside the volume": (
        put("outputs_path", value="/mnt/persistence/outputs/models-2"),
        RUN,
    ),
    "a shared root that is relative": (put("roots", "shared", value="mnt"), MOVED),
    "a state root that goes up": (put("roots", "state", value="/var/../etc"), MOVED),
    "a state root at a package": (put("roots", "state", value=PACKAGES), OVERLAP),
    "a shared root at the devices": (put("roots", "shared", value="/dev"), OVERLAP),
    "a state root that the experiment sees": (
        put("roots", "state", value="/mnt/persistence/state"),
        OVERLAP,
    ),
    "a cache that the experiment sees": (
        put("roots", "node_cache", value="/mnt/persistence/data"),
        OVERLAP,
    ),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_what_no_catalogue_gives_is_refused(
    change: Callable[[dict[str, Any]], None], said: str
) -> None:
    spec = document()
    change(spec)
    with pytest.raises(ConfigError) as caught:
        load_spec(json.dumps(spec), "spec.json")
    assert caught.value.line().startswith(f"error {said}: spec.json: ")
    assert "\n" not in caught.value.line()


def test_a_misspelt_key_is_named_and_not_the_one_that_it_stands_for() -> None:
    """Without it that one is missing, which comes first in the document's order."""
    spec = document()
    spec["volumes"][LABELS]["nmae"] = spec["volumes"][LABELS].pop("name")
    with pytest.raises(SpecInvalid, match=r"unknown key `.*nmae` \(did you mean `name`\?\)"):
        load_spec(json.dumps(spec), "spec.json")


def test_what_a_catalogue_gives_is_loaded() -> None:
    spec = document()
    assert json.loads(load_spec(json.dumps(spec), "spec.json").to_json()) == spec
    # As in a pod, where a bucket with its own path is mounted below the shared root.
    volume(LABELS, "mountpoint", "/mnt/persistence/data/labels")(spec)
    load_spec(json.dumps(spec), "spec.json")


@pytest.mark.parametrize("path", SYSTEM_DIRECTORIES)
def test_a_catalogue_cannot_give_a_directory_of_the_system(path: str) -> None:
    text = f"data: {{v: {{existingClaim: c, mountPath: {path}/x}}}}"
    with pytest.raises(PathOverlap):
        resolve(parse_catalogue(text, "catalogue"), Selection())


# --- the digest ---------------------------------------------------------------------------


class Mounting(Exception):
    """Raised in place of execv: `sidecar mount` has accepted the spec."""


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs `sidecar mount` with a spec's text and arguments; the exit status."""

    def become(*_: object) -> None:
        raise Mounting

    monkeypatch.setattr("os.execv", become)

    def run(text: bytes, *arguments: str) -> int:
        path = tmp_path / "spec.json"
        path.write_bytes(text)
        return main(["mount", "--spec", str(path), *arguments])

    return run


def spec_below(folder: Path) -> bytes:
    spec = document()
    spec["roots"].update(
        shared=f"{folder}/shared",
        secrets=f"{folder}/secrets",
        state=f"{folder}/state",
        termination_message=f"{folder}/termination-log",
    )
    spec["volumes"] = [spec["volumes"][TEAM]]
    spec["outputs_path"] = None
    return json.dumps(spec).encode()


def changed(text: bytes) -> dict[str, bytes]:
    """Other texts for the spec, as by somebody who may patch the pod; some are valid specs."""
    return {
        "another path": text.replace(b"/data/team", b"/data/tean"),
        "one more space": text + b" ",
        "a byte order mark": b"\xef\xbb\xbf" + text,
        "nothing": b"",
        "not UTF-8": b"\xff",
        "not JSON": b"{",
    }


@pytest.mark.parametrize("change", changed(b""))
def test_another_spec_than_at_admission_is_refused(
    mount: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    text = spec_below(tmp_path)
    digest = hashlib.sha256(text).hexdigest()
    assert mount(changed(text)[change], "--spec-sha256", digest) == 2
    said = (
        f"error SC1019 SPEC_CHANGED: {tmp_path}/spec.json: is not the spec that this container was "
        "made for (`--spec-sha256`); make the pod anew\n"
    )
    assert capsys.readouterr() == ("", said)
    assert not (tmp_path / "state").exists()


def test_the_spec_of_the_admission_is_mounted(mount: Callable[..., int], tmp_path: Path) -> None:
    text = spec_below(tmp_path)
    with pytest.raises(Mounting):
        mount(text, "--spec-sha256", hashlib.sha256(text).hexdigest())
    for wrong in ("", "0", hashlib.sha256(text).hexdigest().upper()):
        assert mount(text, "--spec-sha256", wrong) == 2
    with pytest.raises(Mounting):  # Without a digest (compose, by hand), any valid spec.
        mount(text + b" ")


@pytest.mark.parametrize("name", NAMES)
def test_the_patch_carries_the_digest_of_its_annotation(name: str) -> None:
    """In the arguments, which cannot be changed in an existing pod."""
    found = 0
    for document in yaml.safe_load_all(expected(name).read_text()):
        digests = [
            hashlib.sha256(annotation.encode()).hexdigest() for annotation in annotations(document)
        ]
        arguments = [
            container["args"]
            for container, _ in containers(document)
            if container["name"] == "mount-sidecar"
        ]
        assert arguments == [
            ["mount", "--spec", "/etc/sidecar/spec.json", "--spec-sha256", digest]
            for digest in digests
        ]
        found += len(digests)
    assert found


def annotations(item: Any) -> list[str]:
    """The spec of every pod of a manifest."""
    if isinstance(item, list):
        return [spec for value in item for spec in annotations(value)]
    if not isinstance(item, dict):
        return []
    own = [item["mount-sidecar.io/spec"]] if "mount-sidecar.io/spec" in item else []
    return [*own, *(spec for value in item.values() for spec in annotations(value))]
