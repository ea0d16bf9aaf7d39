"""What programs that unpack and copy cost, in requests for each file, on a strict S3.

Listings are not counted here: how many there are depends on the time that all of it takes
(tests/filesystem/test_requests.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.strict_server import StrictS3Server
from tests.writing.buckets import Mounted, mounted

DIRECTORIES, FILES_EACH = 4, 15
FILES = DIRECTORIES * FILES_EACH
MOST_FOR_A_FILE = 3.0
MOST_FOR_A_DIRECTORY = 4.0
LATE = 0.1
"""For each file: on a busy machine a file's attributes may be saved between two system calls."""


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    with mounted(
        request, tmp_path_factory.mktemp("requests"), "s3", server_fixture="strict_s3_server"
    ) as found:
        yield found


def make_tree(root: Path) -> None:
    """Small files whose modes and times are not those that new files get."""
    for number in range(FILES):
        path = root / f"d{number % DIRECTORIES}" / f"f{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1_000 + number))
        path.chmod(0o640 if number % 2 else 0o755)
        os.utime(path, ns=(10**18 + number * 10**9, 10**18 + number * 10**9))
    for directory in root.iterdir():
        directory.chmod(0o750)
        os.utime(directory, ns=(10**18, 10**18))


def run(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def seen(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time in seconds (no archive of zip(1) keeps more) and content by path."""
    return {
        str(path.relative_to(root)): (
            path.stat().st_mode,
            path.stat().st_mtime_ns // 10**9,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(root.rglob("*"))
    }


# --- the programs: each is prepared without being counted, and what it returns is -----------------

Work = Callable[[Path], None]


def prepare_tar(tree: Path, _target: Path) -> Work:
    run("tar", "cf", f"{tree}.tar", "-C", tree, ".")
    return lambda target: run("tar", "xf", f"{tree}.tar", "-C", target)


def prepare_tarfile(tree: Path, _target: Path) -> Work:
    """Sets owner, mode and time of each file once it is closed."""
    run("tar", "cf", f"{tree}.tar", "-C", tree, ".")

    def work(target: Path) -> None:
        with tarfile.open(f"{tree}.tar") as archive:
            archive.extractall(target, filter="fully_trusted")

    return work


def prepare_unzip(tree: Path, _target: Path) -> Work:
    run("zip", "-qr", f"{tree}.zip", ".", cwd=tree)
    return lambda target: run("unzip", "-q", f"{tree}.zip", "-d", target)


def prepare_cp(tree: Path, _target: Path) -> Work:
    return lambda target: run("cp", "-a", f"{tree}/.", target)


def prepare_copytree(tree: Path, _target: Path) -> Work:
    return lambda target: [shutil.copytree(tree, target, dirs_exist_ok=True)].clear()


def prepare_rsync(tree: Path, _target: Path) -> Work:
    return lambda target: run("rsync", "-a", f"{tree}/", target)


def prepare_rsync_again(tree: Path, target: Path) -> Work:
    prepare_rsync(tree, target)(target)
    return prepare_rsync(tree, target)


PROGRAMS = {
    "tar": prepare_tar,
    "tarfile": prepare_tarfile,
    "unzip": prepare_unzip,
    "cp": prepare_cp,
    "copytree": prepare_copytree,
    "rsync": prepare_rsync,
    "rsync-again": prepare_rsync_again,
}


def objects_asked_about(server: StrictS3Server, below: str) -> tuple[Counter[str], Counter[str]]:
    """Requests about files and about directories below a prefix, by operation."""
    lines = [line for line in server.requests() if line.key.startswith(below)]
    files = Counter(line.operation for line in lines if not line.key.endswith("/"))
    return files, Counter(line.operation for line in lines if line.key.endswith("/"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_copies_a_tree(
    place: Mounted, strict_s3_server: StrictS3Server, program: str
) -> None:
    tree = place.local / f"tree-{uuid.uuid4().hex[:8]}"
    make_tree(tree)
    target = place.fresh_directory()
    work = PROGRAMS[program](tree, target)
    strict_s3_server.reset_counts()
    work(target)
    assert place.sidecar.stop() == 0  # so that all is counted
    files, directories = objects_asked_about(strict_s3_server, f"{target.name}/")
    place.sidecar.start()
    assert seen(target) == seen(tree)
    print(program, dict(files), dict(directories))
    assert files.total() <= (MOST_FOR_A_FILE + LATE) * FILES, files
    assert directories.total() <= MOST_FOR_A_DIRECTORY * (1 + DIRECTORIES), directories
    if program == "rsync-again":
        assert not files.keys() - {"HeadObject"}, files


@pytest.mark.parametrize("program", ["npm", "git"])
def test_a_program_that_makes_a_tree(
    place: Mounted, strict_s3_server: StrictS3Server, program: str
) -> None:
    local = place.local / f"package-{uuid.uuid4().hex[:8]}"
    make_tree(local / "lib")
    target = place.fresh_directory()
    if program == "npm":
        (local / "package.json").write_text('{"name": "made", "version": "1.0.0"}')
        run("npm", "pack", "--pack-destination", local, cwd=local)
        command = ["npm", "install", "--offline", "--no-audit", "--no-fund", "--cache"]
        command += [str(local / "cache"), str(local / "made-1.0.0.tgz")]
    else:
        run("git", "init", "-q", cwd=local)
        run("git", "add", ".", cwd=local)
        author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        run("git", *author, "commit", "-q", "-m", "all", cwd=local)
        command = ["git", "clone", "-q", "--no-local", str(local), "."]
    strict_s3_server.reset_counts()
    run(*command, cwd=target)
    assert place.sidecar.stop() == 0
    files, directories = objects_asked_about(strict_s3_server, f"{target.name}/")
    place.sidecar.start()
    made = [path for path in target.rglob("*") if path.is_file()]
    print(program, len(made), dict(files), dict(directories))
    assert len(made) > FILES
    assert files.total() <= (MOST_FOR_A_FILE + LATE) * len(made), files
