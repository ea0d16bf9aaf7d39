"""Saves a state_dict, or loads and checks it: ``python torch_program.py save|load PATH``.

Needs torch, but none of the tests' packages.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch

STEPS = 3


def state() -> dict[str, torch.Tensor]:
    """A state of some MiB, the same at each call."""
    generator = torch.Generator().manual_seed(1)
    return {f"layer{number}": torch.rand(700, 700, generator=generator) for number in range(6)}


def main() -> None:
    """Save or load; print the SHA-256 of what was saved."""
    path = Path(sys.argv[2])
    if sys.argv[1] == "save":
        for _ in range(STEPS):
            torch.save(state(), path)
        print(hashlib.sha256(path.read_bytes()).hexdigest())
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        expected = state()
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], expected[name]) for name in expected)


if __name__ == "__main__":
    main()
