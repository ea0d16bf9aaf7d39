"""Documents and responses that a broken or hostile server might send: right ones, altered."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

MOST_BYTES = 16 * 1024
_MOST_CHANGES = 4
_NUMBERS = (
    b"0", b"-1", b"+1", b"1_0", b"1e9", b"1.5", b"0x10", b"NaN", b"9" * 16, b"9" * 17, b"9" * 5000,
    b"18446744073709551616", b"\xc2\xb2", b"\xd9\xa5", b" 5", b"",
)  # fmt: skip
_CHARACTERS = (
    b"\r", b"\n", b"\r\n", b"\0", b"\x01", b"\t", b" ", b"<", b">", b"&", b'"', b"'", b":", b";",
    b",", b"{", b"}", b"[", b"]", b"\\", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x99\x82", b"\xc3",
)  # fmt: skip


class Mutator:
    """Alters samples, the same way for the same seed.

    Args:
        samples: what is right.
        words: what such bytes are made of.
        value: matches what is between two parts of the form. Half of the samples get other
            values only: most changes to a form end at its parser.
    """

    def __init__(
        self, samples: Sequence[bytes], words: Sequence[bytes], value: bytes, seed: int
    ) -> None:
        self._samples = samples
        self._values = [
            [found.span(1) for found in re.finditer(value, sample)] for sample in samples
        ]
        self._words = (*words, *_NUMBERS, *_CHARACTERS)
        self._dice = random.Random(seed)

    def next(self) -> bytes:
        """One to four changes to one sample."""
        dice = self._dice
        number = int(dice.random() * len(self._samples))
        data = bytearray(self._samples[number])
        if dice.random() < 0.5 and self._values[number]:
            start, end = dice.choice(self._values[number])
            data[start:end] = dice.choice(_NUMBERS if dice.random() < 0.5 else self._words)
            return bytes(data)
        for _ in range(dice.randint(1, _MOST_CHANGES)):
            self._change(data)
        return bytes(data[:MOST_BYTES])

    def _change(self, data: bytearray) -> None:
        dice = self._dice
        start = int(dice.random() * (len(data) + 1))
        end = min(len(data), start + int(dice.random() * 24))
        kind = dice.random()
        if kind < 0.35:
            data[start:start] = dice.choice(self._words)
        elif kind < 0.6:
            data[start:end] = dice.choice(self._words)
        elif kind < 0.7:
            del data[start:end]
        elif kind < 0.8:
            data[start:start] = data[start:end] * dice.randint(1, 40)
        elif kind < 0.9 and start < len(data):
            data[start] = dice.getrandbits(8)
        elif kind < 0.95:
            del data[start:]
        else:
            other = dice.choice(self._samples)
            data[start:] = other[int(dice.random() * len(other)) :]
