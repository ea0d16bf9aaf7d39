"""Programs of training code on an outputs volume; an independent client checks the result."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import io
import os
import random
import shutil
import sqlite3
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sidecar.contract.spec import StoreName
from sidecar.units import MIB
from tests.support.actor import tree
from tests.support.waiting import wait_until
from tests.writing.buckets import Mounted, mounted

PATIENCE_S = 60.0
EVERYWHERE = [
    "s3",
    pytest.param("gcs", marks=pytest.mark.soak),
    pytest.param("azure", marks=pytest.mark.soak),
]


@pytest.fixture(scope="module", params=EVERYWHERE)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    store: StoreName = request.param
    with mounted(request, tmp_path_factory.mktemp(store), store) as found:
        yield found


@pytest.fixture
def directory(place: Mounted) -> Path:
    return place.fresh_directory()


@pytest.fixture
def local(place: Mounted) -> Path:
    path = place.local / place.fresh_name()
    path.mkdir()
    return path


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """The output of a program, which must succeed and print no warning."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "GIT_CONFIG_GLOBAL": os.devnull},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make_tree(root: Path, seed: int, files: int = 60) -> None:
    """Directories three deep, files of many sizes, modes and times, a link."""
    choose = random.Random(seed)
    for number in range(files):
        path = root / f"d{number % 5}" / f"e {number % 3}" / f"f{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(choose.randbytes(choose.choice([0, 1, 4096, 70_000])))
        path.chmod(choose.choice([0o644, 0o600, 0o755]))
        stamp_ns = choose.randrange(10**18, 14 * 10**17)
        os.utime(path, ns=(stamp_ns, stamp_ns))
    (root / "large").write_bytes(choose.randbytes(12 * MIB))
    (root / "link").symlink_to("d0/e 0/f0.bin")
    (root / "d1").chmod(0o700)


def comparable(root: Path) -> dict[str, object]:
    """A tree without the times of directories."""
    return {
        path: (status._replace(mtime_ns=0) if status.kind == "directory" else status, content)
        for path, (status, content) in tree(root).items()
    }


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def in_bucket(place: Mounted, directory: Path, local: Path) -> None:
    """The bucket has the files of a local directory, and no others."""
    links = {
        f"{path.relative_to(local)}.rclonelink": os.readlink(path).encode()
        for path in local.rglob("*")
        if path.is_symlink()
    }
    assert place.objects(directory) == files_of(local) | links


# --- copies -----------------------------------------------------------------------------------


def test_cp_a(place: Mounted, directory: Path, local: Path) -> None:
    make_tree(local, seed=1)
    run("cp", "-a", f"{local}/.", directory)
    assert comparable(directory) == comparable(local)
    in_bucket(place, directory, local)


def test_rsync_a_delete(place: Mounted, directory: Path, local: Path) -> None:
    make_tree(local, seed=2)
    run("rsync", "-a", "--delete", f"{local}/", directory)
    assert comparable(directory) == comparable(local)
    shutil.rmtree(local / "d1")
    (local / "d0/e 0/f0.bin").write_bytes(b"changed")
    (local / "new").write_bytes(b"new")
    run("rsync", "-a", "--delete", f"{local}/", directory)
    assert comparable(directory) == comparable(local)
    assert run("rsync", "-a", "--delete", "--itemize-changes", f"{local}/", directory) == ""
    in_bucket(place, directory, local)


def test_tar_x(place: Mounted, directory: Path, local: Path) -> None:
    make_tree(local, seed=3)
    archive = place.local / "archive.tar"
    # This format has times with fractions of a second.
    run("tar", "c", "--format=posix", "-C", local, "-f", archive, ".")
    run("tar", "x", "-C", directory, "-f", archive)
    assert comparable(directory) == comparable(local)
    in_bucket(place, directory, local)
    again = place.local / "again.tar"
    run("tar", "c", "-C", directory, "-f", again, ".")
    with tarfile.open(again) as archived:
        assert {m.name.removeprefix("./") for m in archived if m.isfile()} == set(files_of(local))


@pytest.mark.parametrize(
    "files",
    [pytest.param(80, id="short"), pytest.param(2_000, id="soak", marks=pytest.mark.soak)],
)
def test_git_clone_and_fsck(place: Mounted, directory: Path, local: Path, files: int) -> None:
    source = local / "source"
    source.mkdir()
    run("git", "init", "-q", "-b", "main", source)
    for number in range(files):
        path = source / f"{number // 100:02d}" / f"{number:04d}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n" * (number % 40))
    run("git", "add", ".", cwd=source)
    who = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
    run("git", *who, "commit", "-qm", "first", cwd=source)
    # Cloning locally would make hard links.
    run("git", "clone", "-q", "--no-local", source, directory / "clone")
    run("git", "fsck", "--full", "--strict", cwd=directory / "clone")
    assert run("git", "status", "--porcelain", cwd=directory / "clone") == ""
    found = place.objects(directory / "clone")
    expected = {k: v for k, v in files_of(source).items() if not k.startswith(".git/")}
    assert {k: v for k, v in found.items() if not k.startswith(".git/")} == expected
    copy = local / "copy"
    for key, data in found.items():
        (copy / key).parent.mkdir(parents=True, exist_ok=True)
        (copy / key).write_bytes(data)
    for empty in ("objects", "refs"):  # Directories without objects, which git requires.
        (copy / ".git" / empty).mkdir(parents=True, exist_ok=True)
    run("git", "fsck", "--full", "--strict", cwd=copy)
    (directory / "clone/00/0001.txt").write_text("changed")
    run("git", *who, "commit", "-qam", "second", cwd=directory / "clone")
    run("git", "gc", "-q", cwd=directory / "clone")
    run("git", "fsck", "--full", "--strict", cwd=directory / "clone")


@pytest.mark.parametrize(
    "mode",
    [
        "delete",
        "wal",
        *(
            pytest.param(mode, marks=pytest.mark.soak)
            for mode in ("truncate", "persist", "memory", "off")
        ),
    ],
)
def test_sqlite(place: Mounted, directory: Path, local: Path, mode: str) -> None:
    """Two connections, a rollback, and the closed file opened from the bucket."""
    path = directory / "base.db"
    base, other = sqlite3.connect(path), sqlite3.connect(path)
    with contextlib.closing(base), contextlib.closing(other):
        assert base.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
        base.execute("create table t (x integer, y text)")
        for number in range(20):
            with base:
                base.executemany(
                    "insert into t values (?, ?)", [(number, "y" * 200) for _ in range(50)]
                )
        assert other.execute("select count(*) from t").fetchone() == (1000,)
        if mode != "off":
            base.execute("delete from t where x < 10")
            base.rollback()
        with other:
            other.execute("delete from t where x = 19")
    found = place.objects(directory)
    for name, data in found.items():
        (local / name).write_bytes(data)
    with contextlib.closing(sqlite3.connect(local / "base.db")) as copy:
        assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
        assert copy.execute("select count(*), sum(x) from t").fetchone() == (950, 8550)


# --- formats of training ----------------------------------------------------------------------


def test_safetensors(place: Mounted, directory: Path) -> None:
    from safetensors.numpy import load, load_file, save_file

    tensors = {"w": np.random.default_rng(1).random((1000, 1500)), "b": np.arange(10)}
    for factor in (1, 2):
        save_file({k: v * factor for k, v in tensors.items()}, directory / "model.safetensors")
    for loaded in (
        load_file(directory / "model.safetensors"),
        load(place.objects(directory)["model.safetensors"]),
    ):
        assert {k: v.tolist() for k, v in loaded.items()} == {
            k: (v * 2).tolist() for k, v in tensors.items()
        }


def test_parquet(place: Mounted, directory: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"x": list(range(100_000)), "y": [str(n) for n in range(100_000)]})
    pq.write_table(table, directory / "part.parquet", row_group_size=10_000)
    pq.write_to_dataset(
        table.append_column("k", pa.array([n % 4 for n in range(100_000)])),
        directory / "set",
        partition_cols=["k"],
    )
    assert pq.read_table(directory / "part.parquet").equals(table)
    assert pq.read_table(directory / "set").num_rows == 100_000
    found = place.objects(directory)
    assert pq.read_table(io.BytesIO(found.pop("part.parquet"))).equals(table)
    assert sum(pq.ParquetFile(io.BytesIO(data)).metadata.num_rows for data in found.values()) == (
        100_000
    )


def test_hdf5(place: Mounted, directory: Path) -> None:
    import h5py

    values = np.random.default_rng(1).random((500, 500))
    with h5py.File(directory / "data.h5", "w") as file:
        rows = file.create_dataset("x", (0, 500), float, maxshape=(None, 500), chunks=(50, 500))
        for start in range(0, 500, 100):
            rows.resize(start + 100, axis=0)
            rows[start : start + 100] = values[start : start + 100]
            file.flush()
    with h5py.File(directory / "data.h5", "r+") as file:
        file["x"][10:20] = 0
        file.create_group("g").attrs["note"] = "later"
    values[10:20] = 0
    with h5py.File(io.BytesIO(place.objects(directory)["data.h5"]), "r") as file:
        assert (file["x"][:] == values).all()
        assert file["g"].attrs["note"] == "later"


def test_numpy_memmap(place: Mounted, directory: Path) -> None:
    shape, path = (1000, 1000), directory / "array.dat"
    mapped = np.memmap(path, np.float32, "w+", shape=shape)
    for row in range(0, 1000, 7):
        mapped[row] = row
    mapped.flush()
    del mapped
    again = np.memmap(path, np.float32, "r+", shape=shape)
    again[:, 5] = -1
    again.flush()
    del again
    expected = np.zeros(shape, np.float32)
    for row in range(0, 1000, 7):
        expected[row] = row
    expected[:, 5] = -1
    found = np.frombuffer(place.objects(directory)["array.dat"], np.float32).reshape(shape)
    assert (found == expected).all()


# --- files that grow --------------------------------------------------------------------------


def records(path: Path) -> int:
    """Number of complete records of a TensorBoard event file: length, CRC, data, CRC."""
    data, position, found = path.read_bytes(), 0, 0
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        position += 12 + length + 4
        found += position <= len(data)
    return found


def test_tensorboard_events_while_they_grow(place: Mounted, directory: Path) -> None:
    from tensorboardX import SummaryWriter

    added = 0
    with SummaryWriter(str(directory)) as writer:

        def all_there() -> bool:
            writer.flush()  # Events may still be queued in its thread.
            return sum(map(records, directory.glob("events.*"))) > added

        for step in range(5):
            for number in range(20):
                writer.add_scalar("loss", 1 / (1 + number), step * 20 + number)
            added += 20  # The file also has one with the version.
            wait_until(all_there, f"the events of step {step}", PATIENCE_S)
    (events,) = directory.glob("events.*")
    assert place.objects(directory) == {events.name: events.read_bytes()}
    assert records(events) == 1 + added


def test_an_empty_file_grows(place: Mounted, directory: Path) -> None:
    """A file made by touch(1) grows by appending and by truncate(1)."""
    data = random.Random(1).randbytes(12 * MIB)
    (directory / "log").touch()
    with (directory / "log").open("ab") as file:
        file.write(data)
    (directory / "sparse").touch()
    run("truncate", "-s", str(len(data)), directory / "sparse")
    assert place.objects(directory) == {"log": data, "sparse": bytes(len(data))}


def test_tail_f(place: Mounted, directory: Path) -> None:
    path = directory / "train.log"
    lines = [f"epoch {number} loss {1 / (number + 1):.4f}\n" for number in range(50)]
    with path.open("w", buffering=1) as log:
        log.write(lines[0])
        with subprocess.Popen(
            ["tail", "-n", "+1", "-s", "0.05", "-f", str(path)], stdout=subprocess.PIPE, text=True
        ) as tail:
            try:
                assert tail.stdout is not None
                assert tail.stdout.readline() == lines[0]
                for line in lines[1:]:
                    log.write(line)
                    assert tail.stdout.readline() == line
            finally:
                tail.terminate()
    assert place.objects(directory) == {"train.log": "".join(lines).encode()}


# --- checkpoints ------------------------------------------------------------------------------


def test_a_checkpoint_loop(place: Mounted, directory: Path) -> None:
    """As Lightning does: the best three stay, `last.ckpt` is a link to the newest."""
    choose, best = random.Random(1), dict[str, float]()
    contents: dict[str, bytes] = {}
    last = directory / "last.ckpt"
    for epoch in range(8):
        name, score = f"epoch={epoch}.ckpt", choose.random()
        contents[name] = choose.randbytes(6 * MIB)
        temporary = directory / f".{name}.tmp"
        with temporary.open("wb") as file:
            file.write(contents[name])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(directory / name)
        best[name] = score
        if last.is_symlink():
            last.unlink()
        last.symlink_to(name)
        assert last.read_bytes() == contents[name]
        while len(best) > 3:
            worst = min((key for key in best if key != name), key=lambda key: best[key])
            del best[worst]
            (directory / worst).unlink()
    found = place.objects(directory)
    assert found.pop("last.ckpt.rclonelink") == name.encode()
    assert found == {key: contents[key] for key in best}


@pytest.mark.soak
def test_torch_save_and_load(place: Mounted, directory: Path) -> None:
    """In the interpreter of scripts/install.sh soak, because torch is large."""
    python = Path(__file__).parents[2] / ".venv-torch/bin/python"
    program = Path(__file__).with_name("torch_program.py")
    digest = run(python, "-W", "error", program, "save", directory / "model.pt").strip()
    data = place.objects(directory)["model.pt"]
    (place.local / "model.pt").write_bytes(data)
    assert hashlib.sha256(data).hexdigest() == digest
    for path in (directory / "model.pt", place.local / "model.pt"):
        run(python, "-W", "error", program, "load", path)
    assert filecmp.cmp(directory / "model.pt", place.local / "model.pt", shallow=False)
