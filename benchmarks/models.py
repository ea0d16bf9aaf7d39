"""Loads weights and data with the libraries that people use, also after a download."""

# ruff: noqa: D102 - the protocol Workload documents the methods.

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import host, programs
from benchmarks.failure import BenchFailure
from benchmarks.measure import MB, Baseline, Metric, Values, timed
from benchmarks.networks import PLAIN, Network
from benchmarks.others import FAST
from benchmarks.peers import Peer, Place
from benchmarks.processes import find_program
from benchmarks.servers import Server
from sidecar.units import MIB

LOADED: Final = Metric("loaded_s", "s to loaded", "lower")
RATE: Final = Metric("loaded_mb_s", "MB/s", "higher")
LOCAL_DISK: Final = "local disk"
DOWNLOAD: Final = "download, then load"
_ROOT: Final = Path(__file__).resolve().parents[1]
_PYTHON: Final = _ROOT / ".venv-torch" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Files that a library made, below one folder of the data set.

    Attributes:
        make: the function of :mod:`.model_programs` that makes them.
        names: of the files; or of one folder, if ``make`` makes that.
        size_bytes: of each file, or of all together, as ``make`` takes it.
    """

    make: str
    names: tuple[str, ...]
    size_bytes: int

    @property
    def folder(self) -> str:
        """Below the data set's root."""
        return f"models/{self.make.removeprefix('make_')}-{self.size_bytes}"

    def paths(self, root: Path) -> list[str]:
        """The files below a copy of the data set."""
        return [str(root / self.folder / name) for name in self.names]

    def seed(self, data: Path) -> None:
        if not (data / self.folder).exists():
            (data / self.folder).mkdir(parents=True)
            run(self.make, paths=self.paths(data), size_bytes=self.size_bytes)

    def warm(self, data: Path) -> None:
        for path in sorted((data / self.folder).rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(16 * MIB):
                        pass


@dataclass(frozen=True, slots=True)
class Load:
    """One library loads, cold, on each mount, from a local disk, and after a download.

    Attributes:
        do: the function of :mod:`.model_programs`.
        what: for the title.
    """

    do: str
    what: str
    dataset: ModelFiles
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (LOADED, RATE)

    @property
    def name(self) -> str:
        return f"load-{self.do.replace('_', '-')}"

    @property
    def title(self) -> str:
        return f"{self.what}, cold"

    def on_peer(self, place: Place) -> Values:
        with place.mounted() as mount:
            return self._checked(mount.path, place.server.data)

    def baselines(self) -> Mapping[str, Baseline]:
        return {LOCAL_DISK: self._from_disk, DOWNLOAD: self._after_download}

    def _from_disk(self, server: Server) -> Values:
        with tempfile.TemporaryDirectory(dir=server.data.parents[2]) as name:
            folder = Path(name)
            source = server.data / self.dataset.folder
            shutil.copytree(source, folder / self.dataset.folder)
            os.sync()
            host.drop_caches()
            return self._checked(folder, server.data)

    def _after_download(self, server: Server) -> Values:
        with tempfile.TemporaryDirectory(dir=server.data.parents[2]) as name:
            folder = Path(name)
            seconds = timed(lambda: _download(server, self.dataset.folder, folder))
            values = dict(self._checked(folder, server.data))
            size_mb = values[RATE.name] * values[LOADED.name]
            values[LOADED.name] += seconds
            return {LOADED.name: values[LOADED.name], RATE.name: size_mb / values[LOADED.name]}

    def _checked(self, root: Path, data: Path) -> Values:
        loaded = run(self.do, paths=self.dataset.paths(root))
        wanted = _expected(self.do, tuple(self.dataset.paths(data)))
        if (loaded["size_bytes"], loaded["checksum"]) != wanted:
            raise BenchFailure(f"{self.do}: loaded other bytes")
        seconds = loaded["seconds"]
        return {LOADED.name: seconds, RATE.name: loaded["size_bytes"] / MB / seconds}


@dataclass(frozen=True, slots=True)
class SaveAndRestore:
    """A checkpoint is saved beside its name, renamed, and loaded on a new mount."""

    size_bytes: int
    dataset: ModelFiles
    network: Network = PLAIN
    peers: Sequence[Peer] = FAST
    metrics: tuple[Metric, ...] = (LOADED, RATE)
    name: str = "save-and-restore"

    @property
    def title(self) -> str:
        return f"torch.save of {self.size_bytes / MIB:.0f} MiB, rename, torch.load"

    def on_peer(self, place: Place) -> Values:
        with place.mounted(writable=True) as mount:
            return self._run(mount.path / "checkpoint.pt")

    def baselines(self) -> Mapping[str, Baseline]:
        return {LOCAL_DISK: self._on_disk}

    def _on_disk(self, server: Server) -> Values:
        with tempfile.TemporaryDirectory(dir=server.data.parents[2]) as name:
            return self._run(Path(name) / "checkpoint.pt")

    def _run(self, path: Path) -> Values:
        loaded = run("checkpoint", paths=[str(path)], size_bytes=self.size_bytes)
        seconds = loaded["seconds"]
        return {LOADED.name: seconds, RATE.name: loaded["size_bytes"] / MB / seconds}


def loads(large_bytes: int) -> tuple[Load | SaveAndRestore, ...]:
    """The rows, with models of ``large_bytes``."""
    safe = ModelFiles("make_safetensors", ("model.safetensors",), large_bytes)
    shards = tuple(f"model-{number}.safetensors" for number in range(4))
    sharded = ModelFiles("make_safetensors", shards, 2 * large_bytes)
    pickled = ModelFiles("make_torch", ("model.pt",), large_bytes)
    tars = tuple(f"shard-{number}.tar" for number in range(4))
    return (
        Load("safetensors_mmap", "safetensors, mapped", safe),
        Load("safetensors_read", "safetensors, read", safe),
        Load("torch_load", "torch.load", pickled),
        Load("torch_load_mmap", "torch.load(mmap=True)", pickled),
        Load("four_processes", "4 shards of safetensors by 4 processes", sharded),
        Load(
            "transformers_folder",
            "transformers, from_pretrained of a folder",
            ModelFiles("make_transformers", ("llama",), large_bytes),
        ),
        Load(
            "webdataset_tar",
            "webdataset, 4 tars of 110 KB samples",
            ModelFiles("make_webdataset", tars, large_bytes),
        ),
        Load(
            "parquet_row_groups",
            "pyarrow, half of the columns by row groups out of order",
            ModelFiles("make_parquet", ("table.parquet",), large_bytes),
        ),
        SaveAndRestore(large_bytes, ModelFiles("make_torch", ("small.pt",), 4 * MIB)),
    )


def missing() -> str | None:
    """Why nothing can be loaded here, or None."""
    return None if _PYTHON.exists() else "no .venv-torch: `scripts/install.sh bench`"


def run(do: str, **job: object) -> dict[str, float]:
    """Run a function of :mod:`.model_programs`. Raises BenchFailure."""
    if (why := missing()) is not None:
        raise BenchFailure(why)
    program = Path(__file__).with_name("model_programs.py")
    command = [str(_PYTHON), str(program)]
    result: dict[str, float] = programs.run_command(command, do, {"do": do, **job})
    return result


@functools.cache
def _expected(do: str, paths: tuple[str, ...]) -> tuple[float, float]:
    """What the server's own files hold."""
    loaded = run(do, paths=list(paths))
    return loaded["size_bytes"], loaded["checksum"]


def _download(server: Server, folder: str, target: Path) -> None:
    """As `aws s3 cp --recursive` does, with several connections."""
    program = find_program("rclone")
    assert program is not None
    endpoint = server.endpoint
    environment = {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_S3_PROVIDER": "Rclone",
        "RCLONE_S3_ENDPOINT": endpoint.url,
        "RCLONE_S3_ACCESS_KEY_ID": endpoint.access_key,
        "RCLONE_S3_SECRET_ACCESS_KEY": endpoint.secret_key,
        "RCLONE_S3_REGION": endpoint.region,
        "PATH": os.environ["PATH"],
    }
    source = f":s3:{endpoint.bucket}/{endpoint.prefix}{folder}"
    done = subprocess.run(
        [program, "copy", source, str(target / folder), "--multi-thread-streams", "8"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=programs.TIMEOUT_S,
    )
    if done.returncode:
        raise BenchFailure(f"download: {done.stderr.strip()[-200:]}")
