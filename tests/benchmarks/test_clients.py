"""The benchmarks' clients do all of their work, once; their checks can fail."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import crew, epochs, latency, readers
from benchmarks.datasets import require_equal
from benchmarks.failure import BenchFailure
from benchmarks.processes import Child
from sidecar.units import MIB


@pytest.mark.parametrize("change", ["size", "start", "end"])
def test_wrong_bytes_are_found(tmp_path: Path, change: str) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    content = bytearray(os.urandom(300_000))
    original.write_bytes(content)
    copy.write_bytes(content)
    require_equal(copy, original)

    if change == "size":
        content.pop()
    else:
        content[0 if change == "start" else -1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(BenchFailure):
        require_equal(copy, original)


def test_a_crew_does_every_item_once(tmp_path: Path) -> None:
    def marker() -> Callable[[int], int]:
        def mark(number: int) -> int:
            # O_EXCL: fails the second time.
            os.close(os.open(tmp_path / str(number), os.O_CREAT | os.O_EXCL))
            return 10

        return mark

    outcome = crew.run(marker, range(101), threads=6, processes=2)
    assert (outcome.operations, outcome.size_bytes) == (101, 1010)
    assert len(list(tmp_path.iterdir())) == 101
    with pytest.raises(crew.CrewFailure, match="FileExistsError"):
        crew.run(marker, range(101), threads=6, processes=2)


def test_a_crew_stops_when_time_is_up() -> None:
    outcome = crew.run(lambda: lambda _: 1, range(10), threads=2, processes=2, duration_s=0.0)
    assert outcome.operations == 0


def test_readers_read_everything_and_name_what_is_missing(tmp_path: Path) -> None:
    names = [f"{number}.bin" for number in range(50)]
    for name in names:
        (tmp_path / name).write_bytes(bytes(3000))
    outcome = readers.files(tmp_path, names, threads=16)
    assert (outcome.operations, outcome.size_bytes) == (50, 150_000)

    first, second = epochs.load(tmp_path, names)
    for epoch in (first, second):
        assert (epoch.files, epoch.size_bytes) == (50, 150_000)

    blocks = readers.blocks(tmp_path / names[0], [0, 1000, 2000], 1000, threads=1, duration_s=60.0)
    assert (blocks.operations, blocks.size_bytes) == (3, 3000)
    with pytest.raises(BenchFailure, match="bytes at 2500"):
        readers.blocks(tmp_path / names[0], [2500], 1000, threads=1, duration_s=60.0)
    with pytest.raises(BenchFailure, match="absent"):
        readers.files(tmp_path, ["absent"], threads=1)
    with pytest.raises(BenchFailure, match="absent"):
        epochs.load(tmp_path, ["absent"])


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it receives."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            with ExitStack() as threads:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:  # Shut down below.
                        return
                    thread = threading.Thread(target=answer, args=(connection,))
                    thread.start()
                    threads.callback(thread.join)

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)))


def test_the_proxy_delays_answers_and_changes_no_bytes(tmp_path: Path, echo: str) -> None:
    content = os.urandom(5_000_000)
    with (
        latency.proxy(echo, 0.01, tmp_path / "quick.log") as quick,
        latency.proxy(echo, 3600.0, tmp_path / "slow.log") as slow,
        connect(quick) as answered,
        connect(slow) as waiting,
    ):
        waiting.sendall(b"request")
        for _ in range(3):  # Several requests on one connection.
            sender = threading.Thread(target=answered.sendall, args=(content,))
            sender.start()
            received = bytearray()
            while len(received) < len(content):
                received += answered.recv(1_000_000)
            sender.join()
            assert received == content
        with pytest.raises(BlockingIOError):
            waiting.recv(1, socket.MSG_DONTWAIT)
        answered.shutdown(socket.SHUT_WR)
        assert answered.recv(1) == b""


def test_cpu_time_includes_living_and_reaped_descendants(tmp_path: Path) -> None:
    burnt = tmp_path / "burnt"
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    burn_and_live = f"{burn}open({str(burnt)!r}, 'w').close()\ntime.sleep(600)\n"
    script = "import subprocess, sys\n" + "".join(
        f"subprocess.run([sys.executable, '-c', {code!r}])\n" for code in (burn, burn_and_live)
    )
    with Child([sys.executable, "-c", script], {}, tmp_path / "log") as child:
        child.wait_until(burnt.exists, "burnt", timeout_s=60)
        assert child.cpu_s() >= 0.55


def test_memory_includes_descendants_and_counts_shared_pages_once(tmp_path: Path) -> None:
    held = 64 * MIB
    script = (
        f"import os, time\nb = b'x' * {held}\n"
        "if os.fork():\n    print('ready', flush=True)\ntime.sleep(600)\n"
    )
    with Child([sys.executable, "-c", script], {}, tmp_path / "log") as child:
        child.wait_until(lambda: "ready" in child.log.read_text(), "ready", timeout_s=60)
        with child.watching_memory() as memory:
            pass
        assert held < memory.peak_bytes < 2 * held


def test_stop_ends_descendants_that_ignore_sigterm(tmp_path: Path) -> None:
    script = "(trap '' TERM; exec sleep 600) & echo $!; wait"
    with Child(["sh", "-c", script], {}, tmp_path / "log") as child:
        child.wait_until(lambda: child.log.read_text().endswith("\n"), "started", timeout_s=60)
        command = Path(f"/proc/{int(child.log.read_text())}/cmdline")
        child.wait_until(lambda: command.read_bytes().startswith(b"sleep"), "exec", timeout_s=60)
    # Where process 1 does not reap, a zombie stays; its command line is empty.
    assert not command.exists() or command.read_bytes() == b""
