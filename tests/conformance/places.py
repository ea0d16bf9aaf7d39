"""The places where the suite runs: a plain directory, and one mount of each transport."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sidecar.mounter.system import mounts

ROOT = Path(__file__).parents[2]
_END_S = 10.0

READ_ONLY_OBJECTS = {"file": "content", "directory/inner": "more", "empty/": ""}
"""The content of a read-only volume: keys and contents."""


@contextmanager
def plain(path: Path, *, read_only: bool) -> Iterator[Path]:
    """A directory of the local file system; read-only through a bind mount of itself."""
    path.mkdir()
    if not read_only:
        yield path
        return
    for key, text in READ_ONLY_OBJECTS.items():
        if key.endswith("/"):
            (path / key).mkdir()
        else:
            (path / key).parent.mkdir(exist_ok=True)
            (path / key).write_text(text)
    _bind_read_only(path)
    try:
        yield path
    finally:
        mounts.unmount(str(path))


@contextmanager
def mounted(
    transport: str, path: Path, *, read_only: bool, options: Sequence[str] = ()
) -> Iterator[Path]:
    """A mount of a memory store, served by another process; unmounted in any case.

    ``options`` are those of :mod:`tests.support.serve`.
    """
    path.mkdir()
    command = [
        sys.executable,
        "-m",
        "tests.support.serve",
        transport,
        str(path),
        str(path.with_name(f"{path.name}-state")),
        "--until-eof",
        *options,
    ]
    if read_only:
        command.append("--read-only")
        for key, text in READ_ONLY_OBJECTS.items():
            command += ["--object", f"{key}={text}"]
    server = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "serving\n"
        yield path
    finally:
        server.stdin.close()
        try:
            server.wait(_END_S)
        except subprocess.TimeoutExpired:
            mounts.clear(str(path))  # Without stat(2), which may hang on a dead mount.
            server.kill()
            server.wait()
        server.stdout.close()
        mounts.clear(str(path))


def _bind_read_only(path: Path) -> None:
    for options in (["--bind", str(path)], ["-o", "remount,ro,bind"]):
        subprocess.run(["mount", *options, str(path)], check=True)
