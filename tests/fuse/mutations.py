"""Valid FUSE requests and damaged copies of them, from a seeded random generator."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable

from sidecar.mounter.fuse.protocol import Opcode, Set
from tests.fuse.served import ROOT, frame

_NAMES = [b"a", b"dir", b"large", b"sub", b"many", b"00", b"49", b"new", b"other", b"x" * 255]
_SIZES = [0, 1, 24, 4096, 131_072, 1 << 20, 1 << 31, (1 << 32) - 1]
_OFFSETS = [0, 1, 4096, 99_999, 100_000, 1 << 20, 1 << 31, 1 << 62, 1 << 63, (1 << 64) - 1]
_NUMBERS = [0, 1, 2, 255, 4096, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
_OPEN_FLAGS = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_RDWR | os.O_EXCL]
_UNIQUE = slice(8, 16)
_REMEMBERED = 64


class Requests:
    """Makes valid requests, with inodes and handles from the answers so far."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.inodes = [ROOT]
        self.handles: list[int] = []
        self._due: list[tuple[int, int, bytes]] = []

    def learn(self, opcode: int, body: bytes) -> None:
        """Remember the inodes and handles of a successful answer."""
        if opcode in (Opcode.LOOKUP, Opcode.MKDIR, Opcode.MKNOD, Opcode.CREATE) and body[:8]:
            self._remember(self.inodes, int.from_bytes(body[:8], "little"))
        if opcode in (Opcode.OPEN, Opcode.OPENDIR):
            self._remember(self.handles, int.from_bytes(body[:8], "little"))
        if opcode == Opcode.CREATE:
            self._remember(self.handles, int.from_bytes(body[128:136], "little"))

    def valid(self, unique: int) -> bytes:
        """A well-formed request of any kind."""
        opcode = self.random.choice(list(_BODIES))
        return frame(opcode, unique, self.random.choice(self.inodes), _BODIES[opcode](self))

    def due(self, unique: int) -> bytes | None:
        """A FORGET or release of an inode or a handle that is not used any more, if any.

        Without them the server would rightly keep all of them, and its memory would grow.
        """
        if not self._due:
            return None
        opcode, inode, body = self._due.pop()
        return frame(opcode, unique, inode, body)

    def _remember(self, known: list[int], number: int) -> None:
        if number not in known:
            known.append(number)
        if len(known) <= _REMEMBERED:
            return
        dropped = known.pop(1)
        if known is self.inodes:
            self._due.append((Opcode.FORGET, dropped, struct.pack("<Q", 1 << 40)))
        else:
            body = struct.pack("<QIIQ", dropped, 0, 0, 0)
            self._due += ((Opcode.RELEASE, ROOT, body), (Opcode.RELEASEDIR, ROOT, body))

    # --- parts of bodies -------------------------------------------------------------------

    def name(self) -> bytes:
        return self.random.choice(_NAMES) + b"\0"

    def handle(self) -> int:
        return self.random.choice(self.handles or [1])

    def reading(self) -> bytes:
        offset, size = self.random.choice(_OFFSETS), self.random.choice(_SIZES)
        return struct.pack("<QQIIQII", self.handle(), offset, size, 0, 0, 0, 0)

    def writing(self) -> bytes:
        size = self.random.choice([0, 1, 100, 4096])
        offset = self.random.choice(_OFFSETS)
        data = self.random.randbytes(size)
        return struct.pack("<QQIIQII", self.handle(), offset, size, 0, 0, 0, 0) + data

    def setting(self) -> bytes:
        valid = self.random.choice([*Set, self.random.getrandbits(11)])
        numbers = [self.random.choice(_OFFSETS) for _ in range(6)]
        rest = [self.random.choice(_SIZES) for _ in range(8)]
        return struct.pack("<II6Q8I", valid, 0, *numbers, *rest)

    def forgetting(self) -> bytes:
        inodes = self.random.sample(self.inodes, min(3, len(self.inodes)))
        body = struct.pack("<II", self.random.choice([len(inodes), (1 << 32) - 1]), 0)
        return body + b"".join(struct.pack("<QQ", inode, 1) for inode in inodes)

    def open_flags(self) -> int:
        return self.random.choice(_OPEN_FLAGS)


_BODIES: dict[int, Callable[[Requests], bytes]] = {
    Opcode.LOOKUP: Requests.name,
    Opcode.FORGET: lambda r: struct.pack("<Q", 1),
    Opcode.BATCH_FORGET: Requests.forgetting,
    Opcode.GETATTR: lambda r: bytes(16),
    Opcode.SETATTR: Requests.setting,
    Opcode.SYMLINK: lambda r: r.name() + r.name(),
    Opcode.MKNOD: lambda r: struct.pack("<IIII", stat.S_IFREG | 0o644, 0, 0, 0) + r.name(),
    Opcode.MKDIR: lambda r: struct.pack("<II", 0o755, 0) + r.name(),
    Opcode.UNLINK: Requests.name,
    Opcode.RMDIR: Requests.name,
    Opcode.RENAME: lambda r: struct.pack("<Q", r.random.choice(r.inodes)) + r.name() + r.name(),
    Opcode.RENAME2: lambda r: (
        struct.pack("<QII", r.random.choice(r.inodes), r.random.choice([0, 1, 2]), 0)
        + r.name()
        + r.name()
    ),
    Opcode.LINK: lambda r: struct.pack("<Q", r.random.choice(r.inodes)) + r.name(),
    Opcode.OPEN: lambda r: struct.pack("<II", r.open_flags(), 0),
    Opcode.CREATE: lambda r: struct.pack("<IIII", r.open_flags(), 0o100644, 0, 0) + r.name(),
    Opcode.READ: Requests.reading,
    Opcode.WRITE: Requests.writing,
    Opcode.STATFS: lambda r: b"",
    Opcode.FLUSH: lambda r: struct.pack("<QIIQ", r.handle(), 0, 0, 0),
    Opcode.FSYNC: lambda r: struct.pack("<QII", r.handle(), 0, 0),
    Opcode.RELEASE: lambda r: struct.pack("<QIIQ", r.handle(), 0, 0, 0),
    Opcode.OPENDIR: lambda r: bytes(8),
    Opcode.READDIR: Requests.reading,
    Opcode.READDIRPLUS: Requests.reading,
    Opcode.RELEASEDIR: lambda r: struct.pack("<QIIQ", r.handle(), 0, 0, 0),
    Opcode.FSYNCDIR: lambda r: struct.pack("<QII", r.handle(), 0, 0),
    Opcode.INIT: lambda r: struct.pack("<IIIII44x", 7, 45, 1 << 20, (1 << 32) - 1, (1 << 32) - 1),
    Opcode.INTERRUPT: lambda r: struct.pack("<Q", r.random.getrandbits(64)),
    Opcode.ACCESS: lambda r: bytes(8),
    Opcode.IOCTL: lambda r: bytes(32),
    Opcode.FALLOCATE: lambda r: bytes(32),
    Opcode.LSEEK: lambda r: bytes(24),
}


def mutated(request: bytes, rng: random.Random) -> bytes:
    """A damaged copy with the same ``unique``, so that its answer can be matched."""
    data = bytearray(request)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        rng.choice(_DAMAGES)(data, rng)
    if rng.random() < 0.8:  # The others keep a wrong length.
        data[0:4] = len(data).to_bytes(4, "little")
    data[_UNIQUE] = request[_UNIQUE]
    return bytes(data)


def _flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randint(16, len(data)) :]


def _extend(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.choice([1, 8, 100, 4096]))


def _swap_opcode(data: bytearray, rng: random.Random) -> None:
    opcode = rng.choice([*Opcode, rng.getrandbits(6), rng.getrandbits(32)])
    data[4:8] = int(opcode).to_bytes(4, "little")


def _put_number(data: bytearray, rng: random.Random) -> None:
    width = rng.choice([4, 8])
    position = rng.randrange(0, len(data), 4)
    number = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
    data[position : position + width] = number.to_bytes(width, "little")


def _lose_nuls(data: bytearray, rng: random.Random) -> None:
    data[40:] = data[40:].replace(b"\0", b"N")


_DAMAGES = [_flip_bits, _truncate, _extend, _swap_opcode, _put_number, _lose_nuls]
