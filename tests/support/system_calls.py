"""The system calls of a sidecar's processes, counted by strace(1)."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class SystemCalls:
    """What processes did during a ``with`` block; empty until it ends.

    Attributes:
        counts: by name of the system call.
        written_bytes: by write(2), sendfile(2) and their like, to files and devices.
        read_bytes: the same for read(2) and its like. Sockets count in neither (proc_pid_io(5)).
    """

    counts: Counter[str] = field(default_factory=Counter)
    written_bytes: int = 0
    read_bytes: int = 0


@contextlib.contextmanager
def counted(pids: Sequence[int], folder: Path) -> Iterator[SystemCalls]:
    """Count what the processes, their threads and their children call.

    Args:
        folder: where strace writes.
    """
    found = SystemCalls()
    table = folder / "strace"
    numbers = [word for pid in pids for word in ("-p", str(pid))]
    command = ["strace", "-f", "-c", "-o", str(table), *numbers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stderr is not None
            for _ in pids:
                assert "attached" in (line := tracer.stderr.readline()), line
            read_bytes, written_bytes = _transferred(pids)
            yield found
            read, written = _transferred(pids)
            found.read_bytes, found.written_bytes = read - read_bytes, written - written_bytes
        finally:
            tracer.send_signal(signal.SIGINT)
    # Share, seconds, microseconds for each, how many, how many failed, name.
    rows = re.findall(r"^ *[\d.]+ +[\d.]+ +\d+ +(\d+) +(?:\d+ +)?(\w+)$", table.read_text(), re.M)
    found.counts.update({name: int(count) for count, name in rows if name != "total"})


def _transferred(pids: Sequence[int]) -> tuple[int, int]:
    read = written = 0
    for pid in pids:
        fields = dict(re.findall(r"(\w+): (\d+)", Path(f"/proc/{pid}/io").read_text()))
        read += int(fields["rchar"])
        written += int(fields["wchar"])
    return read, written
