"""The programs that load weights and data with libraries: ``python model_programs.py``.

It runs under the interpreter of ``.venv-torch``, which has the libraries, and imports nothing from
here. A job comes as JSON on standard input: ``do`` is the name of a function below, the rest its
arguments. The result goes to standard output: ``seconds``, ``size_bytes``, and a ``checksum`` of
what was loaded, so that a wrong byte is found.
"""

# ruff: noqa: D103 - one function for each way to load, named after it.

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Loaded = tuple[int, int]
"""Bytes, and the sum of their 64-bit words, which does not depend on their order."""


def _sum(tensors: Iterable[Any]) -> Loaded:
    """Take each tensor out of the file, as a copy to a device does."""
    import torch

    size = total = 0
    for tensor in tensors:
        own = tensor.clone().reshape(-1).view(torch.uint8).view(torch.int64)
        size += own.numel() * 8
        total += int(own.sum())
    return size, total & (2**63 - 1)


def safetensors_mmap(paths: list[str]) -> Loaded:
    from safetensors import safe_open

    def tensors(path: str) -> Iterable[Any]:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping; in the order of names
                yield file.get_tensor(name)

    return _add(_sum(tensors(path)) for path in paths)


def safetensors_read(paths: list[str]) -> Loaded:
    import safetensors.torch

    return _add(_sum(safetensors.torch.load(Path(path).read_bytes()).values()) for path in paths)


def torch_load(paths: list[str]) -> Loaded:
    import torch

    return _add(_sum(torch.load(path).values()) for path in paths)


def torch_load_mmap(paths: list[str]) -> Loaded:
    import torch

    return _add(_sum(torch.load(path, mmap=True).values()) for path in paths)


def four_processes(paths: list[str]) -> Loaded:
    """Each process loads its shards, as the workers of a server do."""
    import safetensors.torch  # noqa: F401 - imported once, and not in each process

    with multiprocessing.get_context("fork").Pool(4) as pool:
        return _add(pool.map(safetensors_mmap, [[path] for path in paths], chunksize=1))


def transformers_folder(paths: list[str]) -> Loaded:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(paths[0], dtype=torch.float32)
    return _sum(model.state_dict().values())


def webdataset_tar(paths: list[str]) -> Loaded:
    import webdataset

    size = total = 0
    for sample in webdataset.WebDataset(paths, shardshuffle=False):
        data = sample["bin"]
        size += len(data)
        total += data[0] + data[-1]
    return size, total


def parquet_row_groups(paths: list[str]) -> Loaded:
    """Half of the columns, by row groups in another order than the file's."""
    import pyarrow.parquet
    from pyarrow import compute

    size = total = 0
    for path in paths:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names[::2]
        for group in sorted(range(file.num_row_groups), key=lambda number: number * 7 % 31):
            table = file.read_row_group(group, columns=names)
            size += table.nbytes
            total += sum(int(compute.sum(column).as_py()) for column in table.columns)
    return size, total & (2**63 - 1)


def checkpoint(paths: list[str], size_bytes: int) -> Loaded:
    """Save a checkpoint, beside and renamed, and load it again."""
    import torch

    count = 16
    made = torch.Generator().manual_seed(1)
    state = {
        f"layer{number}": torch.randint(
            -(2**31), 2**31 - 1, (size_bytes // 8 // count * 2,), dtype=torch.int32, generator=made
        )
        for number in range(count)
    }
    torch.save(state, f"{paths[0]}.part")
    os.replace(f"{paths[0]}.part", paths[0])
    return torch_load(paths)


def _add(parts: Iterable[Loaded]) -> Loaded:
    sizes, sums = zip(*parts, strict=True)
    return sum(sizes), sum(sums) & (2**63 - 1)


# --- what is loaded -------------------------------------------------------------------------------


def make_torch(paths: list[str], size_bytes: int) -> Loaded:
    import torch

    for number, path in enumerate(paths):
        torch.save(_tensors(size_bytes, number), path)
    return 0, 0


def make_safetensors(paths: list[str], size_bytes: int) -> Loaded:
    import safetensors.torch

    for number, path in enumerate(paths):
        safetensors.torch.save_file(_tensors(size_bytes, number), path)
    return 0, 0


def make_transformers(paths: list[str], size_bytes: int) -> Loaded:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    width = 1024
    layers = max(1, size_bytes // (4 * (12 * width * width)))
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width * 2 // 3,
        num_hidden_layers=layers,
        num_attention_heads=16,
        vocab_size=4096,
    )
    LlamaForCausalLM(config).save_pretrained(paths[0], max_shard_size="256MB")
    return 0, 0


def make_parquet(paths: list[str], size_bytes: int) -> Loaded:
    import numpy as np
    import pyarrow.parquet

    dice = np.random.default_rng(1)
    rows = size_bytes // len(paths) // 8 // 8
    for path in paths:
        columns = {f"c{n}": dice.integers(0, 2**40, rows) for n in range(8)}
        pyarrow.parquet.write_table(
            pyarrow.table(columns), path, row_group_size=rows // 32 + 1, use_dictionary=False
        )
    return 0, 0


def make_webdataset(paths: list[str], size_bytes: int) -> Loaded:
    import io
    import tarfile

    sample = 110_000
    for path in paths:
        with tarfile.open(path, "w") as shard:
            for number in range(max(1, size_bytes // len(paths) // sample)):
                entry = tarfile.TarInfo(f"{number:06}.bin")
                entry.size = sample
                shard.addfile(entry, io.BytesIO(os.urandom(sample)))
    return 0, 0


def _tensors(size_bytes: int, seed: int) -> dict[str, Any]:
    """Names whose order is not that of the file, as in most models."""
    import torch

    count = 48
    made = torch.Generator().manual_seed(seed)
    return {
        f"layer{number * 29 % count:02}.weight": torch.randint(
            -(2**31), 2**31 - 1, (size_bytes // 8 // count * 2,), dtype=torch.int32, generator=made
        )
        for number in range(count)
    }


_IMPORTED = {
    "transformers_folder": ("torch", "transformers.models.llama.modeling_llama"),
    "webdataset_tar": ("webdataset",),
    "parquet_row_groups": ("pyarrow.parquet", "pyarrow.compute"),
}
"""Imported before the time is taken, since imports are not measured."""


def _main() -> None:
    job = json.load(sys.stdin)
    name = job.pop("do")
    function: Callable[..., Loaded] = globals()[name]
    for module in _IMPORTED.get(name, ("torch", "safetensors.torch")):
        importlib.import_module(module)
    began_s = time.perf_counter()
    size_bytes, checksum = function(**job)
    seconds = time.perf_counter() - began_s
    json.dump({"seconds": seconds, "size_bytes": size_bytes, "checksum": checksum}, sys.stdout)


if __name__ == "__main__":
    _main()
