"""What goes into the image is pinned by hash, and listed."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[2]
SBOM = ROOT / "images" / "sbom.py"


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    """Name to version of the pins in a file of requirements."""
    found = re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==([^\s;\\]+)", (ROOT / name).read_text(), re.M)
    return {normalized(package): version for package, version in found}


REQUIREMENTS = ["images/requirements.txt", "images/build-requirements.txt"]


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_each_pin_has_hashes_and_the_version_that_is_tested(name: str) -> None:
    found = pins(name)
    assert found
    assert found.items() <= pins("constraints.txt").items()
    lines = [line for line in (ROOT / name).read_text().splitlines() if line[:1] != "#"]
    for before, line in itertools.pairwise(lines):
        if "==" in before:
            assert re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}( \\)?", line), before
    assert "://" not in (ROOT / name).read_text()  # whose index it was is nobody's business


def test_all_that_the_product_needs_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = project["project"]["dependencies"]
    names = {normalized(re.split(r"[^\w.-]", line)[0]) for line in needed}
    assert names <= pins("images/requirements.txt").keys()
    assert set(project["build-system"]["requires"]) <= pins("images/build-requirements.txt").keys()


def test_pip_takes_nothing_into_the_image_without_a_hash() -> None:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    calls = re.findall(r"pip(?: --python \S+)? (?:install|wheel|download) [^&\n]*", text)
    assert len(calls) == 5
    for call in calls:
        assert "--require-hashes" in call or "--no-index" in call, call
        # A build in isolation brings packages that have no hash.
        assert " install " in call or "--no-build-isolation" in call, call


def sbom(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SBOM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_list_is_cyclonedx() -> None:
    """This machine's list, which has packages of both kinds."""
    first = sbom("mount-sidecar", "1.2.3")
    assert first.returncode == 0, first.stderr
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(first.stdout) is None
    listed = json.loads(first.stdout)
    kinds = {component["purl"].partition("/")[0] for component in listed["components"]}
    assert kinds == {"pkg:deb", "pkg:pypi"}
    assert sbom("mount-sidecar", "1.2.3").stdout == first.stdout
    del listed["components"][0]["name"]
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(listed)) is not None


def test_a_package_that_is_not_the_locked_one_is_named(tmp_path: Path) -> None:
    installed = dict(line.split("=", 1) for line in sbom("--packages").stdout.splitlines())
    locked = tmp_path / "packages.txt"
    locked.write_text("".join(f"{name}={version}\n" for name, version in installed.items()))
    assert sbom("--locked", locked).returncode == 0
    dpkg = installed["dpkg"]
    removed = installed.pop("tar")
    installed |= {"dpkg": "0", "no-such-package": "1"}
    locked.write_text("# A comment.\n" + "".join(f"{n}={v}\n" for n, v in installed.items()))
    done = sbom("--locked", locked)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"dpkg: locked 0, here {dpkg}",
        "no-such-package: locked 1, here (none)",
        f"tar: locked (none), here {removed}",
    ]
