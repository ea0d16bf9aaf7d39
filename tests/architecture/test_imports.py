"""The import contracts, and what process 1 loads."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


FORBIDDEN = {
    "Imports point down, and the two halves never meet": (
        "mounter/store/interface.py",
        "import sidecar.control.catalogue.selection",
    ),
    "Inside the mounter, imports point down: a folder is a stage of a byte": (
        "mounter/store/interface.py",
        "import sidecar.mounter.filesystem.names.names",
    ),
    "Inside the contract, imports point down": (
        "contract/paths.py",
        "import sidecar.contract.spec",
    ),
    "Inside the file system, imports point down: system calls, bytes, inodes, the journal, names": (
        "mounter/filesystem/names/names.py",
        "import sidecar.mounter.filesystem.journal.records",
    ),
    "Inside the control half, imports point down": (
        "control/catalogue/selection.py",
        "import sidecar.control.injection.inject",
    ),
    "Above the stores nothing imports an SDK, FUSE, or more of a store than its interface": (
        "mounter/filesystem/names/names.py",
        "import sidecar.mounter.store.login",
    ),
    "Inside the stores, imports point down: a cloud, what all clouds share, HTTP": (
        "mounter/store/http/client.py",
        "import sidecar.mounter.store.store_errors",
    ),
    "Inside a cloud, imports point down: a store knows its uploads, and they know its client": (
        "mounter/store/gcs/upload.py",
        "import sidecar.mounter.store.gcs.store",
    ),
    "Only an sdk module imports a cloud's SDK": ("mounter/store/s3/store.py", "import s3fs"),
    "The sidecar loads no client of Kubernetes": (
        "mounter/reporting/reporter.py",
        "import sidecar.cluster.api",
    ),
    "Process 1 runs on the standard library alone": ("mounter/system/mounts.py", "import yaml"),
}
"""For each contract, a module and an import that must fail there."""
LOST = ["mounter/lost.py", "mounter/store/lost.py", "mounter/filesystem/lost.py"]
"""Modules in no layer."""


def test_the_import_contracts_hold():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_contract_refuses_what_it_forbids(tmp_path: Path) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    assert {contract["name"] for contract in contracts["contracts"]} == set(FORBIDDEN)
    copy_sources(tmp_path)
    for module, statement in FORBIDDEN.values():
        path = tmp_path / "sidecar" / module
        path.write_text(f"{path.read_text()}\n{statement}\n")
    said = " ".join(lint_imports(tmp_path).stdout.split())  # Its output wraps names.
    assert {name for name in FORBIDDEN if f"{name} BROKEN" in said} == set(FORBIDDEN), said


@pytest.mark.parametrize("lost", LOST)
def test_a_module_without_a_layer_is_refused(tmp_path: Path, lost: str) -> None:
    copy_sources(tmp_path)
    (tmp_path / "sidecar" / lost).write_text('"""Nobody said where this belongs."""\n')
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert f"sidecar.{lost.removesuffix('.py').replace('/', '.')}" in done.stdout


def copy_sources(target: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", target)
    shutil.copytree(
        ROOT / "sidecar", target / "sidecar", ignore=shutil.ignore_patterns("__pycache__")
    )


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", ["sidecar.errors", "sidecar.mounter.supervisor.supervisor"])
def test_process_1_loads_the_standard_library_only(module):
    loaded = _loaded_by(f"import {module}")
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert foreign <= {"sidecar", "__main__"} | _loaded_by_an_empty_program()


def test_resolving_does_not_load_the_clouds():
    loaded = _loaded_by("import sidecar.cli.main, sidecar.control.catalogue.resolve")
    heavy = {"s3fs", "gcsfs", "adlfs", "fsspec", "botocore", "aiohttp", "kubernetes", "fuse"}
    assert not heavy & loaded


def _loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def _loaded_by_an_empty_program() -> set[str]:
    # The environment's .pth files import modules at every start.
    return {name.partition(".")[0] for name in _loaded_by("pass")}
