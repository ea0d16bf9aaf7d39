"""Random operations of several processes, on a mount and on a local directory, compared.

Each step is done by a process on the mount and by its twin on the local disk. Results and
errnos are compared after each step, trees with contents now and then and at the end, and at
the end an independent client reads the bucket. Some steps restart the sidecar or kill the
worker. Allowed differences are in :mod:`differences`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import ExitStack
from typing import Any, ClassVar, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.actor import Actor, Entry, Result, Status
from tests.support.killer import kill_worker
from tests.writing.buckets import VOLUME, Mounted
from tests.writing.differences import Allowed, allowed_on

ACTORS = 3
LINK_SUFFIX = ".rclonelink"  # N7
STREAM_NAMES = 40
SHORT_STEPS, SOAK_STEPS = 200, 20_000
STEPS_OF_A_RUN = 100

# Few names, so that steps often meet names that are missing, taken, or of the wrong type.
names = st.sampled_from(["a", "b", "c", "d e", "ü"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
actors = st.integers(0, ACTORS - 1)
seeds = st.integers(0, 1 << 30)
# Around the sizes of pages, requests and parts, and often small.
sizes = st.one_of(
    st.integers(0, 200),
    st.integers(0, 70_000),
    st.sampled_from([4095, 4096, 4097, 131_072, 300_000]),
)
lengths = st.one_of(sizes, st.sampled_from([0, 1 << 20, 6 << 20]))
modes = st.sampled_from([0o644, 0o600, 0o755, 0o444, 0o666])
times = st.integers(10**18, 14 * 10**17)
access = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR])
creation = st.sampled_from(
    [
        0,
        os.O_CREAT,
        os.O_CREAT,
        os.O_CREAT | os.O_EXCL,
        os.O_CREAT | os.O_TRUNC,
        os.O_CREAT | os.O_APPEND,
        os.O_TRUNC,
        os.O_APPEND,
    ]
)


class Open(NamedTuple):
    """An open file: the process that has it, and its number there."""

    actor: int
    number: int


class Stream:
    """A directory that is being read.

    Attributes:
        always: names that were in it all the time since opendir.
        ever: names that were in it at any time since opendir.
        directory: descriptor of the local one, which follows renames.
    """

    def __init__(self, who: Open, directory: int) -> None:
        self.who = who
        self.directory = directory
        self.always = self.ever = set(os.listdir(directory))
        self.seen: list[str] = []

    def watch(self) -> None:
        """Record the names, after a change that may have been in this directory."""
        now = set(os.listdir(self.directory))
        self.always, self.ever = self.always & now, self.ever | now

    def close(self) -> None:
        """Stop watching the directory."""
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    def check(self) -> None:
        """Check the whole reading against N5 of SEMANTICS.md."""
        self.close()
        assert len(self.seen) == len(set(self.seen)), "a name twice"
        assert self.always <= set(self.seen) <= self.ever


class FileSystems(RuleBasedStateMachine):
    """The state machine; each test sets ``place``."""

    place: ClassVar[Mounted]
    kills: ClassVar[bool] = False
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._name = self.place.fresh_name()
        self._mount = self.place.path / self._name
        self._local = self.place.local / self._name
        self._local.mkdir()
        self._mount.mkdir()  # It may fail, so no process has been started yet.
        self._allowed = allowed_on(self.place.transport)
        self._here = [self._stack.enter_context(Actor(self._mount)) for _ in range(ACTORS)]
        self._there = [self._stack.enter_context(Actor(self._local)) for _ in range(ACTORS)]
        self._open: list[Open] = []
        self._streams: list[Stream] = []
        self._next = 0

    @initialize()
    def some_files(self) -> None:
        """Create names for the first steps."""
        for path in ("a", "b"):
            self._both(0, "mkdir", path, 0o755)
        for path in ("a/a", "b/c", "c"):
            self._with_new(0, path, os.O_RDWR | os.O_CREAT, "write", 1, 5000)

    # --- names ------------------------------------------------------------------------------

    @rule(actor=actors, path=paths)
    def mkdir(self, actor: int, path: str) -> None:
        self._both(actor, "mkdir", path, 0o755)

    @rule(actor=actors, path=paths)
    def rmdir(self, actor: int, path: str) -> None:
        self._both(actor, "rmdir", path)

    @rule(actor=actors, path=paths)
    def unlink(self, actor: int, path: str) -> None:
        self._both(actor, "unlink", path)

    @rule(actor=actors, old=paths, new=paths)
    def rename(self, actor: int, old: str, new: str) -> None:
        self._both(actor, "rename", old, new)

    @rule(actor=actors, points_at=paths, path=paths)
    def symlink(self, actor: int, points_at: str, path: str) -> None:
        self._both(actor, "symlink", points_at, path)

    @rule(actor=actors, path=paths)
    def readlink(self, actor: int, path: str) -> None:
        self._both(actor, "readlink", path)

    @rule(actor=actors, path=st.one_of(st.just(""), paths))
    def listdir(self, actor: int, path: str) -> None:
        self._both(actor, "listdir", path)

    # --- attributes ---------------------------------------------------------------------------

    @rule(actor=actors, path=paths)
    def lstat(self, actor: int, path: str) -> None:
        here, there = self._each(actor, "lstat", path)
        assert here.error == there.error
        if not there.error:
            assert self._comparable(here.value) == self._comparable(there.value)

    @rule(actor=actors, path=paths, mode=modes)
    def chmod(self, actor: int, path: str, mode: int) -> None:
        self._both(actor, "chmod", path, mode)

    @rule(actor=actors, path=paths, mtime_ns=times)
    def utimens(self, actor: int, path: str, mtime_ns: int) -> None:
        self._both(actor, "utimens", path, mtime_ns)

    @rule(actor=actors, path=paths, size=lengths)
    def truncate(self, actor: int, path: str, size: int) -> None:
        self._both(actor, "truncate", path, size)

    # --- open files ---------------------------------------------------------------------------

    @rule(actor=actors, path=paths, how=access, flags=creation, mode=modes)
    def open(self, actor: int, path: str, how: int, flags: int, mode: int) -> None:
        number = self._number()
        if self._both(actor, "open", number, path, how | flags, mode).error:
            return
        if (self._local / path).is_dir():
            self._both(actor, "close", number)  # lseek(2) on it depends on the kernel.
        else:
            self._open.append(Open(actor, number))

    @rule(actor=actors, path=paths, seed=seeds, size=sizes)
    def save(self, actor: int, path: str, seed: int, size: int) -> None:
        """As `echo > path` does."""
        self._with_new(actor, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "write", seed, size)

    @rule(actor=actors, path=paths, seed=seeds, blocks=st.integers(80, 180))
    def save_much(self, actor: int, path: str, seed: int, blocks: int) -> None:
        """Write more than a part, sequentially."""
        self._with_new(
            actor, path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "write_much", seed, blocks
        )

    @precondition(lambda self: self._open)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        opened = self._some_open(data)
        self._open.remove(opened)
        self._both(opened.actor, "close", opened.number)

    @precondition(lambda self: self._open)
    @rule(data=st.data(), seed=seeds, size=sizes)
    def write(self, data: st.DataObject, seed: int, size: int) -> None:
        self._on_open(data, "write", seed, size)

    @precondition(lambda self: self._open)
    @rule(data=st.data(), seed=seeds, size=sizes, offset=sizes)
    def pwrite(self, data: st.DataObject, seed: int, size: int, offset: int) -> None:
        self._on_open(data, "pwrite", seed, size, offset)

    @precondition(lambda self: self._open)
    @rule(data=st.data(), offset=sizes, whence=st.sampled_from([os.SEEK_SET, os.SEEK_END]))
    def seek(self, data: st.DataObject, offset: int, whence: int) -> None:
        self._on_open(data, "seek", offset, whence, asks_status=whence == os.SEEK_END)

    @precondition(lambda self: self._open)
    @rule(data=st.data(), size=sizes)
    def read(self, data: st.DataObject, size: int) -> None:
        self._on_open(data, "read", size)

    @precondition(lambda self: self._open)
    @rule(data=st.data(), size=sizes, offset=sizes)
    def pread(self, data: st.DataObject, size: int, offset: int) -> None:
        self._on_open(data, "pread", size, offset)

    @precondition(lambda self: self._open)
    @rule(data=st.data(), size=lengths)
    def ftruncate(self, data: st.DataObject, size: int) -> None:
        self._on_open(data, "ftruncate", size)

    @precondition(lambda self: self._open)
    @rule(data=st.data())
    def fsync(self, data: st.DataObject) -> None:
        self._on_open(data, "fsync")

    @precondition(lambda self: self._open)
    @rule(data=st.data())
    def fstat(self, data: st.DataObject) -> None:
        self._on_open(data, "fstat", asks_status=True)

    @precondition(lambda self: self._open)
    @rule(data=st.data(), seed=seeds, size=sizes, place=st.floats(0, 1))
    def write_through_a_map(self, data: st.DataObject, seed: int, size: int, place: float) -> None:
        self._on_open(data, "map_write", seed, size, place, asks_status=True)

    @precondition(lambda self: self._open)
    @rule(data=st.data())
    def read_through_a_map(self, data: st.DataObject) -> None:
        self._on_open(data, "map_read", asks_status=True)

    # --- directories that are read while they change --------------------------------------------

    @rule(actor=actors, path=st.one_of(st.just(""), paths))
    def opendir(self, actor: int, path: str) -> None:
        number = self._number()
        if not self._both(actor, "opendir", number, path).error:
            directory = os.open(self._local / path, os.O_RDONLY | os.O_DIRECTORY)
            self._streams.append(Stream(Open(actor, number), directory))

    @precondition(lambda self: self._streams)
    @rule(data=st.data(), count=st.integers(1, 3))
    def readdir(self, data: st.DataObject, count: int) -> None:
        stream = data.draw(st.sampled_from(self._streams))
        got = self._here[stream.who.actor]("readdir", stream.who.number, count)
        assert not got.error, got.error
        stream.seen += got.value

    @precondition(lambda self: self._streams)
    @rule(data=st.data())
    def closedir(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from(self._streams))
        self._streams.remove(stream)
        self._finish(stream)

    # --- everything, and the end of processes -----------------------------------------------------

    @rule()
    def compare_trees(self) -> None:
        self._compare_trees()

    @precondition(lambda self: self.kills)
    @rule()
    def kill_the_worker(self) -> None:
        """SIGKILL the worker; no process may notice."""
        kill_worker(self.place.sidecar, VOLUME)

    @precondition(lambda self: self._next > 10)  # not twice in a row
    @rule(chance=st.integers(0, 9))
    def remount(self, chance: int) -> None:
        """Stop, which saves everything, and start again."""
        if chance:
            return  # Rarely: it takes seconds.
        self._close_all()
        self.place.restart()
        self._next = 0
        self._compare_trees()

    def teardown(self) -> None:
        """Close everything, compare the trees and the bucket, and remove all."""
        try:
            self._close_all()
            tree = self._compare_trees()
            self._compare_bucket(tree)
        finally:
            for stream in self._streams:
                stream.close()
            self._stack.close()
            shutil.rmtree(self._local)
        shutil.rmtree(self._mount)
        assert self.place.objects(self._mount) == {}

    # --- helpers ----------------------------------------------------------------------------------

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _each(self, actor: int, operation: str, *arguments: Any) -> tuple[Result, Result]:
        """The results on the mount and on the local disk."""
        type(self).steps += 1
        here = self._here[actor](operation, *arguments)
        there = self._there[actor](operation, *arguments)
        for stream in self._streams:
            stream.watch()
        return here, there

    def _both(self, actor: int, operation: str, *arguments: Any) -> Result:
        """Run a call on both sides. The results must be equal."""
        here, there = self._each(actor, operation, *arguments)
        assert here == there, f"{operation}{arguments}"
        return there

    def _with_new(self, actor: int, path: str, flags: int, operation: str, *arguments: Any) -> None:
        number = self._number()
        if not self._both(actor, "open", number, path, flags, 0o644).error:
            self._both(actor, operation, number, *arguments)
            self._both(actor, "close", number)

    def _some_open(self, data: st.DataObject) -> Open:
        opened: Open = data.draw(st.sampled_from(self._open))
        return opened

    def _on_open(
        self, data: st.DataObject, operation: str, *arguments: Any, asks_status: bool = False
    ) -> None:
        opened = self._some_open(data)
        here, there = self._each(opened.actor, operation, opened.number, *arguments)
        if (
            here != there
            and asks_status
            and here.error == "ENOENT"
            and Allowed.NAMELESS_STATUS in self._allowed
            and self._there[opened.actor]("is_nameless", opened.number).value
        ):
            return
        assert here == there, f"{operation}{arguments}"

    def _comparable(self, status: Status) -> Status:
        """Without a directory's time, which changes with its names (A5)."""
        if status.kind != "directory":
            return status
        # JuiceFS's gateway keeps no metadata of the object of a directory.
        mode = 0 if self.place.cloud.name == "s3" else status.mode
        return status._replace(mtime_ns=0, mode=mode)

    def _compare_trees(self) -> dict[str, Entry]:
        here, there = self._each(0, "tree", "")
        mount, local = (
            {
                path: entry._replace(status=self._comparable(entry.status))
                for path, entry in side.value.items()
            }
            for side in (here, there)
        )
        assert mount == local
        tree: dict[str, Entry] = there.value
        return tree

    def _compare_bucket(self, tree: dict[str, Entry]) -> None:
        expected = {}
        for path, (status, content) in tree.items():
            if status.kind == "file":
                expected[path] = content
            elif status.kind == "link":
                expected[path + LINK_SUFFIX] = hashlib.sha256(content.encode()).hexdigest()
        found = {
            path: hashlib.sha256(content).hexdigest()
            for path, content in self.place.objects(self._mount).items()
        }
        assert found == expected

    def _close_all(self) -> None:
        while self._streams:
            self._finish(self._streams.pop())
        for number in range(ACTORS):
            self._both(number, "close_all")
        self._open.clear()

    def _finish(self, stream: Stream) -> None:
        actor, number = stream.who
        while got := self._here[actor]("readdir", number, STREAM_NAMES).value:
            stream.seen += got
        self._here[actor]("closedir", number)
        self._there[actor]("closedir", number)
        note(f"{stream.always} <= {stream.seen} <= {stream.ever}")
        stream.check()


PLACES = [
    pytest.param(
        store,
        transport,
        steps,
        id=f"{length}-{store}-{transport}",
        marks=[pytest.mark.soak] if length == "soak" else [],
    )
    for length, steps, stores in (
        ("short", SHORT_STEPS, ["s3"]),
        ("soak", SOAK_STEPS, ["s3", "gcs", "azure"]),
    )
    for store in stores
    for transport in ("kernel", "libfuse")
]


@pytest.mark.parametrize(("store", "transport", "steps"), PLACES)
def test_a_mount_is_a_directory(place: Mounted, steps: int) -> None:
    """The seed is random; a failure is shrunk, and its steps are printed."""

    class Machine(FileSystems):
        kills = place.transport == "kernel"  # libfuse mounts again, and open files are lost.

    Machine.place = place
    while Machine.steps < steps:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=1 + steps // 1000,
                stateful_step_count=STEPS_OF_A_RUN,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
    print(
        f"\n    {Machine.steps} operations on {place.cloud.name} through {place.transport}", end=" "
    )
