"""Programs that write and look at many small files: requests to the store for each, and time.

The server counts requests from the start of a program until a while after its end: some mounts
upload after close(2), and what a mount knows of names expires meanwhile.
"""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import stored
from benchmarks.failure import BenchFailure
from benchmarks.measure import READER_TIMEOUT_S, Baseline, Metric, Values, timed
from benchmarks.networks import STRICT_DELAYED, Network
from benchmarks.others import APPLICATIONS
from benchmarks.peers import Peer, Place
from benchmarks.servers import WRITTEN, Server

LOCAL = "local folder"

_FILES_EACH = 12
"""Files in a directory, about as many as in a repository of source code."""
_MOST_BYTES = 8192
_PACKAGES = 6
_EDITED = 5
_QUIET_S = 1.5
"""Longer than what a mount of ours knows about names of a writable volume (1 s)."""
_MOST_WAIT_S = 60.0

_ENVIRONMENT = {
    "GIT_AUTHOR_NAME": "bench",
    "GIT_AUTHOR_EMAIL": "bench@localhost",
    "GIT_COMMITTER_NAME": "bench",
    "GIT_COMMITTER_EMAIL": "bench@localhost",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree of ``count`` files of some KiB, also as archives, repository and packages.

    It is the local source of what programs write into the bucket.
    """

    count: int

    @property
    def folder(self) -> str:
        """The folder below the data set's root."""
        return f"tree-{self.count}"

    def seed(self, data: Path) -> None:
        root = data / self.folder
        if root.exists():
            return
        files = _make_files(root / "files", self.count)
        with tarfile.open(root / "files.tar", "w") as tar:
            tar.add(root / "files", "files")
        with zipfile.ZipFile(root / "files.zip", "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(root))
        shutil.copytree(root / "files", root / "repository")
        _run("git", "init", "-q", "-b", "main", str(root / "repository"))
        _run("git", "-C", str(root / "repository"), "add", ".")
        _run("git", "-C", str(root / "repository"), "commit", "-q", "-m", "all")
        for number in range(_PACKAGES):
            _pack(root / f"package-{number}.tgz", f"package-{number}", files[number::_PACKAGES])

    def warm(self, data: Path) -> None:
        """Do nothing: the programs' sources are small, and just written."""


Step = Callable[[Path, Path], None]
"""Runs a program: from a seeded tree, below a new directory. Raises BenchFailure."""


@dataclass(frozen=True, slots=True)
class Application:
    """A program, run on a fresh mount, or several that follow each other there.

    Attributes:
        steps: by name.
    """

    application: str
    steps: Mapping[str, Step]
    dataset: Tree
    network: Network = STRICT_DELAYED
    peers: Sequence[Peer] = APPLICATIONS

    @property
    def name(self) -> str:
        return f"application-{self.application}"

    @property
    def title(self) -> str:
        return f"{', '.join(self.steps)}: {self.dataset.count} small files{self.network.words}"

    @property
    def metrics(self) -> Sequence[Metric]:
        return [metric for step in self.steps for metric in (requests(step), seconds(step))]

    def on_peer(self, place: Place) -> Values:
        stored.in_folder(place.server, WRITTEN).clear()
        values: dict[str, float] = {}
        with place.mounted(writable=True) as mount:
            # A folder for this round: markers of directories outlast a contender.
            target = mount.path / WRITTEN / place.folder.name
            target.mkdir()
            source = place.server.data / self.dataset.folder
            before = _settled(place.server)
            for name, step in self.steps.items():
                values[seconds(name).name] = timed(partial(step, source, target))
                after = _settled(place.server)
                values[requests(name).name] = (after - before) / self.dataset.count
                before = after
        return values

    def baselines(self) -> Mapping[str, Baseline]:
        return {LOCAL: self._locally}

    def _locally(self, server: Server) -> Values:
        target = server.data.parent / f"local-{self.application}"
        target.mkdir()
        try:
            source = server.data / self.dataset.folder
            return {
                seconds(name).name: timed(partial(step, source, target))
                for name, step in self.steps.items()
            }
        finally:
            shutil.rmtree(target)


def requests(step: str) -> Metric:
    """Requests to the store for each file of the tree."""
    return Metric(f"{step}_requests_each", f"{step}, requests a file", "lower")


def seconds(step: str) -> Metric:
    """From the program's start to its end."""
    return Metric(f"{step}_s", f"{step}, s", "lower")


def applications(count: int) -> Sequence[Application]:
    """All of them, on one tree."""
    tree = Tree(count)
    return (
        Application("tar", {"tar": _tar}, tree),
        Application("unzip", {"unzip": _unzip}, tree),
        Application("cp", {"cp": _copy}, tree),
        Application("rsync", {"rsync": _rsync, "rsync again": _rsync}, tree),
        Application("git", {"clone": _clone, "status": _status, "commit": _commit}, tree),
        Application("npm", {"npm": _install}, tree),
    )


# --- the programs -----------------------------------------------------------------------------


def _tar(source: Path, target: Path) -> None:
    _run("tar", "-xf", str(source / "files.tar"), "-C", str(target))


def _unzip(source: Path, target: Path) -> None:
    _run("unzip", "-q", str(source / "files.zip"), "-d", str(target))


def _copy(source: Path, target: Path) -> None:
    _run("cp", "-a", str(source / "files"), str(target))


def _rsync(source: Path, target: Path) -> None:
    _run("rsync", "-a", str(source / "files"), str(target))


def _clone(source: Path, target: Path) -> None:
    # By the protocol, as from a server: a clone of a folder would link or copy its objects.
    _run("git", "clone", "-q", (source / "repository").as_uri(), str(target / "clone"))


def _status(_: Path, target: Path) -> None:
    _run("git", "-C", str(target / "clone"), "status", "--short")


def _commit(_: Path, target: Path) -> None:
    for file in sorted((target / "clone").rglob("*.txt"))[:_EDITED]:
        with file.open("a") as text:
            text.write("more\n")
    _run("git", "-C", str(target / "clone"), "commit", "-q", "-a", "-m", "more")


def _install(source: Path, target: Path) -> None:
    packages = sorted(str(path) for path in source.glob("package-*.tgz"))
    cache = source / "npm-cache"
    quiet = ("--offline", "--no-audit", "--no-fund", "--ignore-scripts", "--silent")
    _run("npm", "install", *quiet, "--cache", str(cache), "--prefix", str(target), *packages)


def _run(*argv: str) -> None:
    try:
        subprocess.run(
            argv,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=READER_TIMEOUT_S,
            env={**os.environ, **_ENVIRONMENT},
        )
    except FileNotFoundError:
        raise BenchFailure(f"`{argv[0]}` is not installed") from None
    except subprocess.CalledProcessError as error:
        raise BenchFailure(f"{argv[0]}: {error.stderr.strip()[-200:]}") from None
    except subprocess.TimeoutExpired:
        raise BenchFailure(f"{argv[0]}: not done in {READER_TIMEOUT_S:.0f} s") from None


def _settled(server: Server) -> int:
    """How many requests the server has had, once no more come. Raises BenchFailure."""
    deadline_s = time.monotonic() + _MOST_WAIT_S
    count, changed_s = server.requests(), time.monotonic()
    while time.monotonic() < changed_s + _QUIET_S:
        if time.monotonic() > deadline_s:
            raise BenchFailure(f"requests have not ended after {_MOST_WAIT_S:.0f} s")
        time.sleep(_QUIET_S / 10)
        if (now := server.requests()) != count:
            count, changed_s = now, time.monotonic()
    return count


# --- what they work on ------------------------------------------------------------------------


def _make_files(root: Path, count: int) -> list[Path]:
    """Text of known sizes in directories of two levels; the same in each run."""
    numbers = random.Random(count)
    files = []
    for number in range(count):
        directory = number // _FILES_EACH
        file = root / f"part-{directory // 8}" / f"module-{directory}" / f"{number:04d}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = numbers.randrange(1, _MOST_BYTES // 32)
        file.write_text("".join(f"{numbers.getrandbits(120):031x}\n" for _ in range(lines)))
        files.append(file)
    return files


def _pack(path: Path, name: str, files: Sequence[Path]) -> None:
    """A package as `npm pack` makes it."""
    manifest = json.dumps({"name": name, "version": "1.0.0", "license": "MIT"}).encode()
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("package/package.json")
        entry.size = len(manifest)
        tar.addfile(entry, io.BytesIO(manifest))
        for file in files:
            tar.add(file, f"package/lib/{file.parent.name}/{file.name}")
