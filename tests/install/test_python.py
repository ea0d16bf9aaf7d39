"""Which Python `scripts/install.sh` takes: one that runs and can make a virtual environment.

Each test has its own PATH, with programs that behave as those on users' machines.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHOOSE = """
. scripts/python.sh
choose_python || true
printf '%s\\n' "$chosen_python" "$chosen_version" "$unpackaged_python" "$refused_pythons"
"""
VERSION = "{}.{}.{}".format(*sys.version_info[:3])
OLD = "sys.version_info = (3, 9, 2, 'final', 0)"
FAILS = "import venv; venv.create = lambda *_, **__: open('/nowhere')"


@dataclass
class Choice:
    """What the script chose.

    Attributes:
        python, version: of the chosen Python, or "".
        unpackaged: Debian's Python, if it only lacks a package, or "".
        refused: path to reason.
    """

    python: str
    version: str
    unpackaged: str
    refused: dict[str, str] = field(default_factory=dict)


def choose(*folders: Path, python: str = "") -> Choice:
    tools = folders[0].parent / "tools"  # the programs that the script calls, without a Python
    tools.mkdir()
    (tools / "readlink").symlink_to("/bin/readlink")
    done = subprocess.run(
        ["/bin/bash", "-euc", CHOOSE],
        cwd=ROOT,
        env={"PATH": ":".join(map(str, [*folders, tools])), "PYTHON": python},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    chosen, version, unpackaged, *refused = done.stdout.splitlines()
    reasons = dict(line.split(": ", 1) for line in refused if line)
    return Choice(chosen, version, unpackaged, reasons)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def interpreter(path: Path, change: str = "") -> Path:
    """This Python under another name, which runs the statement ``change`` first."""
    begin = f"import sys\n{change}\nsys.argv.pop(0)\nexec(sys.argv[1])"
    return script(path, f'exec {sys.executable} -c {shlex.quote(begin)} "$@"')


def without(module: str) -> str:
    """A statement that makes a module of the standard library missing."""
    return f"""
class Absent:
    def find_spec(self, name, *_):
        if name == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")
sys.meta_path.insert(0, Absent())
sys.modules.pop({module!r}, None)
"""


def pyenv_shim(path: Path) -> Path:
    """pyenv's program for a version that is installed but not selected."""
    said = f"""pyenv: {path.name}: command not found

The `{path.name}' command exists in these Python versions:
  3.13.0
"""
    return script(path, f"printf %s {shlex.quote(said)} >&2; exit 127")


def test_the_newest_is_taken(tmp_path: Path) -> None:
    for name in ("python3.11", "python3.14", "python3.12", "python3"):
        interpreter(tmp_path / "bin" / name)
    assert choose(tmp_path / "bin") == Choice(f"{tmp_path}/bin/python3.14", VERSION, "")


def test_a_shim_of_a_version_that_is_not_selected_is_skipped(tmp_path: Path) -> None:
    shim = pyenv_shim(tmp_path / "shims" / "python3.13")
    system = interpreter(tmp_path / "bin" / "python3.11")
    choice = choose(tmp_path / "shims", tmp_path / "bin")
    assert choice.python == str(system)
    assert choice.refused == {str(shim): "pyenv: python3.13: command not found"}


def test_a_python_with_the_name_of_a_shim_is_found_later_in_path(tmp_path: Path) -> None:
    pyenv_shim(tmp_path / "shims" / "python3.13")
    system = interpreter(tmp_path / "bin" / "python3.13")
    assert choose(tmp_path / "shims", tmp_path / "bin").python == str(system)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (OLD, "older than Python 3.11: 3.9.2"),
        (without("ensurepip"), "ModuleNotFoundError: No module named 'ensurepip'"),
        (without("venv"), "ModuleNotFoundError: No module named 'venv'"),
        (without("lzma"), "ModuleNotFoundError: No module named 'lzma'"),
        (FAILS, "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere'"),
        ("sys.exit(3)", "ended with status 3 and said nothing"),
        ("sys.exit(0)", "ended with status 0 and said nothing"),
    ],
)
def test_an_unfit_python_is_skipped_with_its_reason(tmp_path: Path, change: str, why: str) -> None:
    unfit = interpreter(tmp_path / "one" / "python3.13", change)
    fit = interpreter(tmp_path / "two" / "python3")
    choice = choose(tmp_path / "one", tmp_path / "two")
    assert choice.python == str(fit)
    assert choice.refused == {str(unfit): why}


def test_the_python_of_a_conda_environment_is_found(tmp_path: Path) -> None:
    active = interpreter(tmp_path / "conda" / "envs" / "work" / "bin" / "python")
    old = interpreter(tmp_path / "bin" / "python3", OLD)
    choice = choose(active.parent, old.parent)
    assert choice.python == str(active)
    assert choice.refused == {str(old): "older than Python 3.11: 3.9.2"}


def test_a_python_of_uv_outside_of_path_is_found(tmp_path: Path) -> None:
    managed = interpreter(tmp_path / "uv" / "cpython-3.13" / "bin" / "python3.13")
    script(tmp_path / "bin" / "uv", f'[ "$1 $2" = "python find" ] && echo {managed}')
    assert choose(tmp_path / "bin").python == str(managed)


def test_uv_without_a_python_is_no_candidate(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "uv", "echo 'error: No interpreter found' >&2; exit 2")
    assert choose(tmp_path / "bin") == Choice("", "", "")


def test_the_named_one_is_the_only_candidate(tmp_path: Path) -> None:
    interpreter(tmp_path / "bin" / "python3.14")
    named = interpreter(tmp_path / "bin" / "python3.12")
    assert choose(tmp_path / "bin", python="python3.12").python == str(named)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("python3.9", "older than Python 3.11: 3.9.2"),
        ("python3.10", "no such program"),
        ("/nowhere/python", "no such program"),
    ],
)
def test_the_named_one_is_checked_too(tmp_path: Path, name: str, why: str) -> None:
    interpreter(tmp_path / "bin" / "python3.14")
    old = interpreter(tmp_path / "bin" / "python3.9", OLD)
    choice = choose(tmp_path / "bin", python=name)
    assert choice == Choice("", "", "", {str(old) if name == "python3.9" else name: why})


def test_a_debian_python_that_lacks_a_package_is_told_apart(tmp_path: Path) -> None:
    """Debian's Python needs a package for `ensurepip`; apt cannot help with pyenv's."""
    interpreter(tmp_path / "bin" / "python3.12", without("ensurepip"))
    assert choose(tmp_path / "bin").unpackaged == ""
    shutil.rmtree(tmp_path / "tools")
    script(tmp_path / "bin" / "readlink", "echo /usr/bin/python3.12")
    assert choose(tmp_path / "bin").unpackaged == "/usr/bin/python3.12"


def test_the_installer_says_what_was_tried_and_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    shim = pyenv_shim(tmp_path / "shims" / "python3.13")
    done = subprocess.run(
        [tmp_path / "clone" / "scripts" / "install.sh", "demo"],
        env={**os.environ, "PYTHON": str(shim)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{shim}: pyenv: python3.13: command not found\n" in done.stderr
    assert "PYTHON=" in done.stderr.splitlines()[-1]
