"""The demo's data set: 650 handwritten digits of 8 x 8 pixels.

``digits.xz`` holds records of 65 bytes: the digit, then 64 grey values from 0 (paper) to
16 (ink), row by row. They are the first 650 of the test part of "Optical Recognition of
Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
CC BY 4.0).
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from importlib import resources

SIDE_PIXELS = 8
_RECORD_BYTES = 1 + SIDE_PIXELS * SIDE_PIXELS
_TEST_EVERY = 5


@dataclass(frozen=True, slots=True)
class Digit:
    """One image.

    Attributes:
        name: its key in the bucket, such as ``0042.pgm``.
        label: the digit that it shows, 0 to 9.
        split: ``train`` or ``test``.
        image: the file, a binary PGM (netpbm's pgm(5)).
    """

    name: str
    label: int
    split: str
    image: bytes


def load_digits() -> list[Digit]:
    """The data set, in a fixed order."""
    packed = lzma.decompress(resources.files(__package__).joinpath("digits.xz").read_bytes())
    count = len(packed) // _RECORD_BYTES
    header = f"P5\n{SIDE_PIXELS} {SIDE_PIXELS}\n16\n".encode("ascii")
    digits = []
    for index in range(count):
        record = packed[index * _RECORD_BYTES : (index + 1) * _RECORD_BYTES]
        split = "train" if index % _TEST_EVERY else "test"
        digits.append(Digit(f"{index:04d}.pgm", record[0], split, header + record[1:]))
    return digits


def labels_csv(digits: list[Digit]) -> str:
    """The table of the images as CSV: file, label, split."""
    rows = [f"{digit.name},{digit.label},{digit.split}" for digit in digits]
    return "\n".join(["file,label,split", *rows, ""])
