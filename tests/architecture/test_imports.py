"""The architecture as checks: who may import whom, and what process 1 loads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_import_contracts_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["sidecar.errors", "sidecar.mounter.supervisor.main"])
def test_process_1_loads_the_standard_library_only(module):
    loaded = _loaded_by(f"import {module}")
    # `fuse` and friends would appear here by their top-level names.
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert foreign <= {"sidecar", "__main__"} | _loaded_by_an_empty_program()


def test_resolving_does_not_load_the_clouds():
    loaded = _loaded_by("import sidecar.cli, sidecar.control.catalogue.resolve")
    heavy = {"s3fs", "gcsfs", "adlfs", "fsspec", "botocore", "aiohttp", "kubernetes", "fuse"}
    assert not heavy & loaded


def _loaded_by(statement: str) -> set[str]:
    program = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout))


def _loaded_by_an_empty_program() -> set[str]:
    # .pth files of the environment load things before any program begins.
    return {name.partition(".")[0] for name in _loaded_by("pass")}
