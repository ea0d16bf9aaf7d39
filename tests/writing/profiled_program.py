"""Programs as in training code, interrupted by a profiler's timer.

``python profiled_program.py PROGRAM write|check DIRECTORY SIZE``: ``write`` leaves files below
the directory, and ``check`` fails unless they hold what ``write`` wrote. A signal arrives every
3 ms of real time and of CPU time; as in profilers, its handler does nothing and restarts
system calls (SA_RESTART). On a local disk no call is interrupted.

It needs an interpreter with the program's packages only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

EVERY_S = 0.003
MIB = 1024 * 1024
STEP_ROWS = 300_000


@contextlib.contextmanager
def interrupted() -> Iterator[None]:
    """Signals are sent to this process, not to its children."""
    timers = ((signal.SIGALRM, signal.ITIMER_REAL), (signal.SIGPROF, signal.ITIMER_PROF))
    for number, timer in timers:
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)
        signal.setitimer(timer, EVERY_S, EVERY_S)
    try:
        yield
    finally:
        for _, timer in timers:  # The interpreter removes the handlers when it ends.
            signal.setitimer(timer, 0)


# --- names ------------------------------------------------------------------------------------


def write_names(directory: Path, size: int) -> None:
    """Calls that Python does not repeat by itself after EINTR, unlike open(2) and read(2)."""
    for number in range(size):
        folder = directory / f"d{number % 7}"
        folder.mkdir(exist_ok=True)
        new, old = folder / f"{number}.new", folder / f"{number}"
        new.write_bytes(b"%d" % number)
        os.stat(new)
        os.rename(new, old)
        os.chmod(old, 0o600)
        os.utime(old, (10**9, 10**9))
        assert not os.path.exists(new)
        assert old.name in os.listdir(folder)
        os.symlink(old.name, folder / f"{number}.link")
        assert os.readlink(folder / f"{number}.link") == old.name
        os.truncate(old, 3)
        os.statvfs(folder)
        if number % 2:
            os.unlink(old)
    os.mkdir(directory / "empty")
    os.rmdir(directory / "empty")


def check_names(directory: Path, size: int) -> None:
    """Walk a tree that is not cached: each first stat(2) waits for the store."""
    for path in directory.rglob("*"):
        if path.name.isdigit():
            os.stat(path)
    found = {int(p.name): p.read_bytes() for p in directory.rglob("*") if p.name.isdigit()}
    assert found == {n: (b"%d" % n)[:3].ljust(3, b"\0") for n in range(0, size, 2)}


# --- databases --------------------------------------------------------------------------------


def write_sqlite(directory: Path, size: int) -> None:
    """Two processes that write to one database with a write-ahead log."""
    path = directory / "base.db"
    with contextlib.closing(sqlite3.connect(path)) as base:
        assert base.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        base.execute("create table t (who integer, x integer, y text)")
        base.commit()
    with subprocess.Popen(
        [sys.executable, __file__, "sqlite_other", "write", directory, str(size)]
    ) as other:
        _insert(path, 1, size)
    assert other.returncode == 0


def write_sqlite_other(directory: Path, size: int) -> None:
    _insert(directory / "base.db", 2, size)


def _insert(path: Path, who: int, size: int) -> None:
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as base:
        for number in range(size):
            with base:
                base.execute("begin immediate")
                base.executemany("insert into t values (?, ?, ?)", [(who, number, "y" * 200)] * 20)
            if number % 10 == 0:
                base.execute("pragma wal_checkpoint(passive)")


def check_sqlite(directory: Path, size: int) -> None:
    with contextlib.closing(sqlite3.connect(directory / "base.db")) as base:
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        rows = base.execute("select who, count(*), sum(x) from t group by who order by who")
        assert rows.fetchall() == [(who, 20 * size, 20 * sum(range(size))) for who in (1, 2)]


def write_duckdb(directory: Path, size: int) -> None:
    """A database that grows to ``size`` MiB, with a checkpoint about every 30 MiB."""
    import duckdb

    path = directory / "base.duckdb"
    rows = 0
    with duckdb.connect(str(path)) as base:
        base.execute("create table t (x bigint, y varchar)")
        while not path.exists() or path.stat().st_size < size * MIB:
            # Hashes are incompressible.
            base.execute(
                "insert into t select i, md5(i::varchar) || sha256(i::varchar)"
                " from range(?, ?) s(i)",
                [rows, rows + STEP_ROWS],
            )
            rows += STEP_ROWS
            base.execute("checkpoint")
            base.execute("update t set y = md5(y) || sha256(y) where x % 100_000 = 7")
    (directory / "rows").write_text(str(rows))


def check_duckdb(directory: Path, size: int) -> None:
    import duckdb

    rows = int((directory / "rows").read_text())
    with duckdb.connect(str(directory / "base.duckdb"), read_only=True) as base:
        found = base.execute("select count(*), count(distinct x), max(x) from t").fetchone()
        assert found == (rows, rows, rows - 1)
        wrong = base.execute(
            "select count(*) from t"
            " where x % 100_000 != 7 and y != md5(x::varchar) || sha256(x::varchar)"
        ).fetchone()
        assert wrong == (0,)
    assert (directory / "base.duckdb").stat().st_size >= size * MIB


def write_lmdb(directory: Path, size: int) -> None:
    """One environment with pwrite(2), one with a writable map."""
    import lmdb

    for name, mapped in (("plain", False), ("mapped", True)):
        with lmdb.open(str(directory / name), map_size=64 * MIB, writemap=mapped) as base:
            for number in range(size):
                with base.begin(write=True) as transaction:
                    for key in range(number * 20, number * 20 + 20):
                        transaction.put(b"%08d" % key, _content(key))
                if number % 3 == 2:
                    with base.begin(write=True) as transaction:
                        transaction.delete(b"%08d" % (number * 20))


def check_lmdb(directory: Path, size: int) -> None:
    import lmdb

    deleted = {number * 20 for number in range(2, size, 3)}
    expected = {b"%08d" % key: _content(key) for key in range(size * 20) if key not in deleted}
    for name in ("plain", "mapped"):
        with (
            lmdb.open(str(directory / name), readonly=True, lock=False) as base,
            base.begin() as transaction,
        ):
            assert dict(transaction.cursor()) == expected


# --- arrays and tables ------------------------------------------------------------------------


def write_zarr(directory: Path, size: int) -> None:
    import zarr

    values = _values(size)
    array = zarr.create_array(
        str(directory / "array.zarr"), shape=(0, 100), chunks=(50, 50), dtype="f8"
    )
    for start in range(0, size, 50):
        array.append(values[start : start + 50])
    array[3:70] = 0
    array.attrs["note"] = "later"


def check_zarr(directory: Path, size: int) -> None:
    import zarr

    values = _values(size)
    values[3:70] = 0
    array = zarr.open_array(str(directory / "array.zarr"), mode="r")
    assert (array[:] == values).all()
    assert array.attrs["note"] == "later"


def write_h5py(directory: Path, size: int) -> None:
    import h5py

    values = _values(size)
    with h5py.File(directory / "data.h5", "w") as file:
        rows = file.create_dataset("x", (0, 100), float, maxshape=(None, 100), chunks=(50, 100))
        for start in range(0, size, 50):
            rows.resize(min(start + 50, size), axis=0)
            rows[start : start + 50] = values[start : start + 50]
            file.flush()
    with h5py.File(directory / "data.h5", "r+") as file:
        file["x"][3:70] = 0


def check_h5py(directory: Path, size: int) -> None:
    import h5py

    values = _values(size)
    values[3:70] = 0
    with h5py.File(directory / "data.h5", "r") as file:
        assert (file["x"][:] == values).all()


def write_parquet(directory: Path, size: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"x": list(range(size)), "k": [n % 4 for n in range(size)]})
    pq.write_to_dataset(table, directory / "set", partition_cols=["k"])
    assert pq.read_table(directory / "set").num_rows == size


def check_parquet(directory: Path, size: int) -> None:
    import pyarrow.parquet as pq

    found = pq.read_table(directory / "set")["x"].to_pylist()
    assert sorted(found) == list(range(size))


def write_datasets(directory: Path, size: int) -> None:
    from datasets import Dataset

    rows = {"x": list(range(size)), "y": [_content(n).hex() for n in range(size)]}
    Dataset.from_dict(rows).save_to_disk(directory / "set", num_shards=4)
    check_datasets(directory, size)


def check_datasets(directory: Path, size: int) -> None:
    from datasets import load_from_disk

    found = load_from_disk(directory / "set")
    assert found["x"][:] == list(range(size))
    assert found["y"][size - 1] == _content(size - 1).hex()


# --- packages ---------------------------------------------------------------------------------


def write_pip(directory: Path, size: int) -> None:
    """A wheel of ``size`` modules, installed into the directory twice."""
    from pip._internal.cli.main import main as pip

    wheel = directory / "many-1.0-py3-none-any.whl"
    _make_wheel(wheel, size)
    options = ["--quiet", "--no-index", "--no-deps", "--no-cache-dir", "--upgrade"]
    for _ in range(2):
        assert pip(["install", *options, "--target", str(directory / "site"), str(wheel)]) == 0


def check_pip(directory: Path, size: int) -> None:
    for number in range(size):
        text = (directory / f"site/many/m{number}.py").read_text()
        assert text == f"NUMBER = {number}\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import many.m{size - 1} as m; print(m.NUMBER)"],
        cwd=directory / "site",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{size - 1}\n"


def _make_wheel(path: Path, modules: int) -> None:
    import zipfile

    files = {f"many/m{number}.py": f"NUMBER = {number}\n" for number in range(modules)}
    files["many/__init__.py"] = ""
    about = "many-1.0.dist-info"
    files[f"{about}/METADATA"] = "Metadata-Version: 2.1\nName: many\nVersion: 1.0\n"
    files[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in files)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


def _content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (1 + number % 9)


def _values(rows: int) -> Any:
    import numpy as np

    return np.random.default_rng(random.Random(rows).randrange(1 << 30)).random((rows, 100))


def main() -> None:
    program, action, directory, size = sys.argv[1:]
    do: Callable[[Path, int], None] = globals()[f"{action}_{program}"]
    with interrupted():
        do(Path(directory), int(size))


if __name__ == "__main__":
    main()
