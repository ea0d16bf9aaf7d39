"""Every opcode gets an answer, constants are the kernel's, malformed requests do no harm.

The values below are from the kernel's include/uapi/linux/fuse.h, the sizes from ``sizeof`` of
a C compiler; they are not computed from the tested code.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator

import pytest

from sidecar.mounter.fuse import protocol as p
from sidecar.mounter.fuse.codec import MAX_REQUEST_BYTES
from sidecar.mounter.fuse.operations import OPERATIONS, Operation, Refusal
from sidecar.mounter.fuse.protocol import Opcode
from tests.fuse.served import LARGE_BYTES, ROOT, Served, frame

# enum fuse_opcode, protocol 7.45
OPCODES = {
    "LOOKUP": 1,
    "FORGET": 2,
    "GETATTR": 3,
    "SETATTR": 4,
    "READLINK": 5,
    "SYMLINK": 6,
    "MKNOD": 8,
    "MKDIR": 9,
    "UNLINK": 10,
    "RMDIR": 11,
    "RENAME": 12,
    "LINK": 13,
    "OPEN": 14,
    "READ": 15,
    "WRITE": 16,
    "STATFS": 17,
    "RELEASE": 18,
    "FSYNC": 20,
    "SETXATTR": 21,
    "GETXATTR": 22,
    "LISTXATTR": 23,
    "REMOVEXATTR": 24,
    "FLUSH": 25,
    "INIT": 26,
    "OPENDIR": 27,
    "READDIR": 28,
    "RELEASEDIR": 29,
    "FSYNCDIR": 30,
    "GETLK": 31,
    "SETLK": 32,
    "SETLKW": 33,
    "ACCESS": 34,
    "CREATE": 35,
    "INTERRUPT": 36,
    "BMAP": 37,
    "DESTROY": 38,
    "IOCTL": 39,
    "POLL": 40,
    "NOTIFY_REPLY": 41,
    "BATCH_FORGET": 42,
    "FALLOCATE": 43,
    "READDIRPLUS": 44,
    "RENAME2": 45,
    "LSEEK": 46,
    "COPY_FILE_RANGE": 47,
    "SETUPMAPPING": 48,
    "REMOVEMAPPING": 49,
    "SYNCFS": 50,
    "TMPFILE": 51,
    "STATX": 52,
    "COPY_FILE_RANGE_64": 53,
}
FLAGS = {
    p.Init: {
        "ASYNC_READ": 1 << 0,
        "ATOMIC_O_TRUNC": 1 << 3,
        "BIG_WRITES": 1 << 5,
        "DO_READDIRPLUS": 1 << 13,
        "READDIRPLUS_AUTO": 1 << 14,
        "ASYNC_DIO": 1 << 15,
        "PARALLEL_DIROPS": 1 << 18,
        "MAX_PAGES": 1 << 22,
        "INIT_EXT": 1 << 30,
        "PASSTHROUGH": 1 << 37,
        "HAS_RESEND": 1 << 39,
    },
    p.Open: {
        "DIRECT_IO": 1 << 0,
        "KEEP_CACHE": 1 << 1,
        "CACHE_DIR": 1 << 3,
        "NOFLUSH": 1 << 5,
        "PASSTHROUGH": 1 << 7,
    },
    p.Set: {
        "MODE": 1 << 0,
        "UID": 1 << 1,
        "GID": 1 << 2,
        "SIZE": 1 << 3,
        "MTIME": 1 << 5,
        "FH": 1 << 6,
        "MTIME_NOW": 1 << 8,
    },
    p.Notify: {"INVAL_INODE": 2, "INVAL_ENTRY": 3, "STORE": 4, "RESEND": 7},
}
CONSTANTS = {
    "MAJOR": 7,
    "ROOT_ID": 1,
    "UNIQUE_RESEND": 1 << 63,
    "UNKNOWN_INO": 0xFFFFFFFF,
    "BACKING_OPEN": 0x4010E501,
    "BACKING_CLOSE": 0x4004E502,
}
ATTR_BYTES = 88
WHOLE = {  # sizeof(struct fuse_...)
    "IN_HEADER": 40,
    "OUT_HEADER": 16,
    "ATTR": ATTR_BYTES,
    "ENTRY_OUT": 128 - ATTR_BYTES,
    "ATTR_OUT": 104 - ATTR_BYTES,
    "OPEN_OUT": 16,
    "INIT_OUT": 64,
    "SETATTR_IN": 88,
    "MKDIR_IN": 8,
    "MKNOD_IN": 16,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "OPEN_IN": 8,
    "CREATE_IN": 16,
    "WRITE_IN": 40,
    "WRITE_OUT": 8,
    "STATFS_OUT": 80,
    "FORGET_IN": 8,
    "BATCH_FORGET_IN": 8,
    "FORGET_ONE": 16,
    "INTERRUPT_IN": 8,
    "DIRENT": 24,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
    "NOTIFY_STORE_OUT": 24,
    "BACKING_MAP": 16,
}
BEGINNINGS = {  # Structures that are read in part: offsetof() the first field that is not.
    "INIT_IN": 16,  # flags2
    "INIT_IN_FLAGS2": 4,  # unused
    "READ_IN": 24,  # lock_owner
    "HANDLE_IN": 8,  # flags, unused, fsync_flags
}
UNANSWERED = {"FORGET", "BATCH_FORGET", "INTERRUPT", "NOTIFY_REPLY"}
ANSWERED = sorted(number for name, number in OPCODES.items() if name not in UNANSWERED)
UNKNOWN = [0, 7, 19, 54, 4096, 0x7FFFFFFF, 0xFFFFFFFF]
WHOLE_4_GIB = 0xFFFFFFFF


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One process for all tests: it must survive whatever each of them sends."""
    with Served(tmp_path_factory.mktemp("served"), hanging=True) as server:
        yield server


@pytest.fixture
def served(server: Served) -> Iterator[Served]:
    logged = len(server.log)
    yield server
    assert server.ask(Opcode.STATFS).errno == 0, "the server does not serve any more"
    assert "Traceback" not in server.log[logged:]


def look_up(served: Served, *names: str) -> int:
    """The inode of a path."""
    inode = ROOT
    for name in names:
        answer = served.ask(Opcode.LOOKUP, inode, name.encode() + b"\0")
        assert answer.errno == 0
        inode = int.from_bytes(answer.body[:8], "little")
    return inode


def open_file(served: Served, inode: int, flags: int = os.O_RDONLY) -> int:
    answer = served.ask(Opcode.OPEN, inode, struct.pack("<II", flags, 0))
    assert answer.errno == 0
    return int.from_bytes(answer.body[:8], "little")


def read_in(handle: int, offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0)


def entries(body: bytes, *, plus: bool) -> Iterator[tuple[int, bytes]]:
    """(offset of the next entry, name) of each struct fuse_dirent or fuse_direntplus."""
    head = 128 if plus else 0
    while body:
        offset, length = struct.unpack_from("<QI", body, head + 8)
        yield offset, body[head + 24 : head + 24 + length]
        body = body[-(-(head + 24 + length) // 8) * 8 :]


# --- numbers and layouts ---------------------------------------------------------------------


def test_opcodes_are_the_kernels() -> None:
    assert {opcode.name: int(opcode) for opcode in Opcode} == OPCODES


@pytest.mark.parametrize("enum", FLAGS, ids=lambda enum: enum.__name__)
def test_flags_are_the_kernels(enum: type[p.Init | p.Open | p.Set | p.Notify]) -> None:
    assert {flag.name: int(flag) for flag in enum} == FLAGS[enum]


def test_constants_are_the_kernels() -> None:
    assert {name: getattr(p, name) for name in CONSTANTS} == CONSTANTS
    assert p.ENTRY_BYTES == 128


def test_structures_have_the_kernels_sizes() -> None:
    sizes = {name: s.size for name, s in vars(p).items() if isinstance(s, struct.Struct)}
    assert sizes == WHOLE | BEGINNINGS


@pytest.mark.parametrize("length", [1, 7, 8, 9, 255])
def test_directory_entries_are_padded_to_8_bytes(length: int) -> None:
    # FUSE_DIRENT_SIZE and FUSE_DIRENTPLUS_SIZE of fuse.h
    assert p.dirent_bytes(length, plus=False) == -(-(24 + length) // 8) * 8
    assert p.dirent_bytes(length, plus=True) == -(-(128 + 24 + length) // 8) * 8


# --- the table -------------------------------------------------------------------------------


def test_every_opcode_is_served_or_has_its_errno() -> None:
    assert set(OPERATIONS) == set(OPCODES.values())
    for operation in OPERATIONS.values():
        assert isinstance(operation, Operation) or operation.errno in errno.errorcode


@pytest.mark.parametrize("name", ["FLUSH", "FSYNC", "FSYNCDIR", "OPEN", "OPENDIR"])
def test_what_the_kernel_would_never_ask_again_is_served(name: str) -> None:
    # fs/fuse/file.c and dir.c: after one ENOSYS, the connection's later calls succeed unasked.
    assert isinstance(OPERATIONS[OPCODES[name]], Operation)


@pytest.mark.parametrize("body", [b"", b"\0", b"\xff" * 7, bytes(256)], ids=len)
def test_every_opcode_answers_once_whatever_its_body(served: Served, body: bytes) -> None:
    for number in ANSWERED:
        answer = served.ask(number, ROOT, body)
        operation = OPERATIONS[number]
        if isinstance(operation, Refusal):
            assert answer.errno == operation.errno
        else:
            assert answer.errno != errno.ENOSYS
    for name in UNANSWERED:
        served.send(frame(OPCODES[name], served.fresh_unique(), ROOT, body))


@pytest.mark.parametrize("inode", [0, 999_999, 1 << 63, (1 << 64) - 1])
def test_every_opcode_answers_for_an_inode_that_was_never_given_out(
    served: Served, inode: int
) -> None:
    for number in ANSWERED:
        answer = served.ask(number, inode, b"name\0" + bytes(251))
        assert answer.errno != errno.ENOSYS or OPERATIONS[number] == Refusal(errno.ENOSYS)
    assert served.ask(Opcode.GETATTR, inode).errno == errno.ESTALE


@pytest.mark.parametrize("opcode", UNKNOWN)
def test_unknown_opcodes_get_enosys(served: Served, opcode: int) -> None:
    assert served.ask(opcode, ROOT, b"whatever").errno == errno.ENOSYS


# --- malformed frames ------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 4, 39])
def test_a_frame_without_a_whole_header_is_passed_over(served: Served, length: int) -> None:
    served.send(frame(Opcode.GETATTR, served.fresh_unique())[:length])
    assert served.ask(Opcode.GETATTR).errno == 0  # Also checks that no other answer came first.


@pytest.mark.parametrize("claimed", [0, 39, 41, 1 << 31, WHOLE_4_GIB])
def test_a_frame_that_lies_about_its_length_is_passed_over(served: Served, claimed: int) -> None:
    whole = frame(Opcode.GETATTR, served.fresh_unique())
    served.send(claimed.to_bytes(4, "little") + whole[4:])
    assert served.ask(Opcode.GETATTR).errno == 0


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (Opcode.LOOKUP, b""),
        (Opcode.LOOKUP, b"no-nul"),
        (Opcode.LOOKUP, b"\0"),
        (Opcode.LOOKUP, b"a/b\0"),
        (Opcode.UNLINK, b"no-nul"),
        (Opcode.MKDIR, bytes(8) + b"no-nul"),
        (Opcode.MKDIR, bytes(7)),
        (Opcode.MKNOD, struct.pack("<IIII", stat.S_IFREG, 0, 0, 0)),
        (Opcode.RENAME, (ROOT).to_bytes(8, "little") + b"only-one\0"),
        (Opcode.RENAME, (ROOT).to_bytes(8, "little") + b"one\0two"),
        (Opcode.RENAME2, bytes(12)),
        (Opcode.SETATTR, bytes(87)),
        (Opcode.READ, bytes(23)),
        (Opcode.WRITE, struct.pack("<QQIIQII", 1, 0, 100, 0, 0, 0, 0) + b"99"),
        (Opcode.WRITE, struct.pack("<QQIIQII", 1, 0, WHOLE_4_GIB, 0, 0, 0, 0)),
        (Opcode.WRITE, struct.pack("<QQIIQII", 1, 1 << 20, 0, 0, 0, 0, 0)),
        (Opcode.CREATE, bytes(16)),
        (Opcode.OPEN, bytes(7)),
        (Opcode.RELEASE, bytes(7)),
        (Opcode.INIT, bytes(15)),
    ],
)
def test_a_malformed_body_gets_einval(served: Served, opcode: Opcode, body: bytes) -> None:
    assert served.ask(opcode, ROOT, body).errno == errno.EINVAL


@pytest.mark.parametrize("count", [0, 1, 2, WHOLE_4_GIB])
def test_batch_forget_believes_what_is_there_and_not_the_count(served: Served, count: int) -> None:
    inodes = [look_up(served, "a"), look_up(served, "dir")]
    body = struct.pack("<II", count, 0) + b"".join(struct.pack("<QQ", n, 1 << 40) for n in inodes)
    served.send(frame(Opcode.BATCH_FORGET, served.fresh_unique(), 0, body))
    known = [served.ask(Opcode.GETATTR, inode).errno == 0 for inode in inodes]
    assert known == [count < 1, count < 2]


def test_an_inode_lives_until_every_lookup_of_it_is_forgotten(served: Served) -> None:
    inode = look_up(served, "dir", "sub", "leaf")
    assert look_up(served, "dir", "sub", "leaf") == inode
    served.send(frame(Opcode.FORGET, served.fresh_unique(), inode, struct.pack("<Q", 1)))
    assert served.ask(Opcode.GETATTR, inode).errno == 0
    served.send(frame(Opcode.FORGET, served.fresh_unique(), inode, struct.pack("<Q", 1)))
    assert served.ask(Opcode.GETATTR, inode).errno == errno.ESTALE


# --- lengths and offsets that no kernel sends ----------------------------------------------------


@pytest.mark.parametrize("written", [False, True], ids=["from the store", "from the spool"])
def test_a_read_of_4_gib_gives_what_the_file_has(served: Served, written: bool) -> None:
    handle = open_file(served, look_up(served, "dir", "large"), os.O_RDWR)
    if written:
        body = struct.pack("<QQIIQII", handle, 0, 1, 0, 0, 0, 0) + b"\0"
        assert served.ask(Opcode.WRITE, ROOT, body).errno == 0
    before = served.resident_bytes()
    for _ in range(8):
        answer = served.ask(Opcode.READ, ROOT, read_in(handle, 0, WHOLE_4_GIB))
        assert (answer.errno, len(answer.body)) == (0, LARGE_BYTES)
    assert served.resident_bytes() - before < 8 * MAX_REQUEST_BYTES


@pytest.mark.parametrize("offset", [LARGE_BYTES, 1 << 62, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("written", [False, True], ids=["from the store", "from the spool"])
def test_a_read_beyond_the_end_is_empty_or_refused(
    served: Served, written: bool, offset: int
) -> None:
    handle = open_file(served, look_up(served, "dir", "large"), os.O_RDWR)
    if written:
        body = struct.pack("<QQIIQII", handle, 0, 1, 0, 0, 0, 0) + b"\0"
        assert served.ask(Opcode.WRITE, ROOT, body).errno == 0
    answer = served.ask(Opcode.READ, ROOT, read_in(handle, offset, 4096))
    assert answer.errno in (0, errno.EINVAL)
    assert answer.body == b""


@pytest.mark.parametrize("offset", [1 << 62, 1 << 63, (1 << 64) - 1])
def test_a_write_that_no_file_can_hold_is_refused(served: Served, offset: int) -> None:
    handle = open_file(served, look_up(served, "a"), os.O_RDWR)
    body = struct.pack("<QQIIQII", handle, offset, 1, 0, 0, 0, 0) + b"x"
    assert served.ask(Opcode.WRITE, ROOT, body).errno in (errno.EFBIG, errno.EINVAL)


@pytest.mark.parametrize("size", [1 << 62, 1 << 63, (1 << 64) - 1])
def test_a_length_that_no_file_can_have_is_refused(served: Served, size: int) -> None:
    inode = look_up(served, "a")
    body = struct.pack("<IIQQQQQQ8I", p.Set.SIZE, 0, 0, size, *bytes(12))
    assert served.ask(Opcode.SETATTR, inode, body).errno in (errno.EFBIG, errno.EINVAL)
    assert served.ask(Opcode.GETATTR, inode).errno == 0


@pytest.mark.parametrize("seconds", [-1, 0, -(10**9), 2**63 - 1, -(2**63)])
def test_any_time_can_be_set_and_comes_back(served: Served, seconds: int) -> None:
    inode = look_up(served, "a")
    body = struct.pack("<IIQQQQqQ8I", p.Set.MTIME, 0, 0, 0, 0, 0, seconds, *bytes(9))
    assert served.ask(Opcode.SETATTR, inode, body).errno == 0
    answer = served.ask(Opcode.GETATTR, inode)
    assert answer.errno == 0
    (mtime_s,) = struct.unpack_from("<q", answer.body, 16 + 8 * 4)
    assert mtime_s == seconds


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
@pytest.mark.parametrize("start", [0, 1, 2, 51, 52, 1 << 63, (1 << 64) - 1])
def test_a_directory_is_read_from_any_offset(served: Served, opcode: Opcode, start: int) -> None:
    offset = start
    answer = served.ask(Opcode.OPENDIR, look_up(served, "many"), bytes(8))
    handle = int.from_bytes(answer.body[:8], "little")
    names = []
    while (answer := served.ask(opcode, ROOT, read_in(handle, offset, WHOLE_4_GIB))).body:
        for next_offset, name in entries(answer.body, plus=opcode == Opcode.READDIRPLUS):
            names.append(name)
            offset = next_offset
    assert answer.errno == 0
    assert names == [b".", b"..", *(b"%02d" % number for number in range(50))][start:]


@pytest.mark.parametrize("size", [0, 1, 23, 24, 150, 4096])
@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_a_directory_answer_fits_the_space_that_was_given(
    served: Served, opcode: Opcode, size: int
) -> None:
    answer = served.ask(Opcode.OPENDIR, look_up(served, "many"), bytes(8))
    handle = int.from_bytes(answer.body[:8], "little")
    answer = served.ask(opcode, ROOT, read_in(handle, 0, size))
    assert (answer.errno, len(answer.body) <= size) == (0, True)


# --- the connection ----------------------------------------------------------------------------


def init_in(major: int, minor: int, flags: int, flags2: int | None) -> bytes:
    body = struct.pack("<IIII", major, minor, 1 << 20, flags)
    return body if flags2 is None else body + struct.pack("<I", flags2) + bytes(44)


@pytest.mark.parametrize("flags2", [None, 0, 0xFFFFFFFF])
@pytest.mark.parametrize("flags", [0, p.Init.INIT_EXT, 0xFFFFFFFF & ~p.Init.INIT_EXT, 0xFFFFFFFF])
def test_init_agrees_to_nothing_that_was_not_offered(
    served: Served, flags: int, flags2: int | None
) -> None:
    answer = served.ask(Opcode.INIT, 0, init_in(7, 45, flags, flags2))
    assert (answer.errno, len(answer.body)) == (0, 64)
    fields = struct.unpack("<IIIIHHIIHHII24x", answer.body)
    major, minor, _, agreed = fields[:4]
    agreed2, stack_depth = fields[10], fields[11]
    assert (major, minor <= 45) == (7, True)
    assert agreed & ~flags == 0
    offered2 = (flags2 or 0) if flags & p.Init.INIT_EXT else 0
    assert agreed2 & ~offered2 == 0
    assert bool(stack_depth) == bool(agreed2 & (p.Init.PASSTHROUGH >> 32))
    writeback_cache = 1 << 16
    assert agreed & writeback_cache == 0, "it hides write errors from the writer"


def test_init_of_another_major_version(served: Served) -> None:
    # fuse.h: a newer kernel sends INIT again with our version; an older one is refused.
    assert served.ask(Opcode.INIT, 0, init_in(6, 45, 0, None)).errno == errno.EPROTO
    assert served.ask(Opcode.INIT, 0, init_in(8, 0, 0, None)).body[:4] == (7).to_bytes(4, "little")


def test_a_request_that_is_sent_again_is_answered_under_its_marked_number(served: Served) -> None:
    unique = p.UNIQUE_RESEND | 8
    served.send(frame(Opcode.GETATTR, unique))
    assert served.receive()[:2] == (unique, 0)


def test_a_read_of_a_killed_program_is_answered_at_once(served: Served, killed: int) -> None:
    handle = open_file(served, look_up(served, "never"))
    waiting = served.fresh_unique()
    served.send(frame(Opcode.READ, waiting, ROOT, read_in(handle, 0, 5), killed))
    assert served.ask(Opcode.STATFS).errno == 0  # The waiting read blocks no other request.
    interrupt = frame(Opcode.INTERRUPT, waiting | 1, 0, struct.pack("<Q", waiting))
    served.send(interrupt)
    assert served.receive()[:2] == (waiting, errno.EINTR)
    served.send(interrupt)  # Too late: the kernel ignores an answer to it (ENOENT).
    unique = served.fresh_unique()
    served.send(frame(Opcode.STATFS, unique))
    answers = [served.receive()]
    while answers[-1].unique != unique:
        answers.append(served.receive())
    assert answers[-1].errno == 0
    assert all(answer[:2] == (waiting, errno.EINTR) for answer in answers[:-1])


@pytest.mark.parametrize("thread", [0, os.getpid()], ids=["unknown", "alive"])
def test_a_read_goes_on_when_its_program_gets_a_signal(served: Served, thread: int) -> None:
    handle = open_file(served, look_up(served, "never"))
    waiting = served.fresh_unique()
    served.send(frame(Opcode.READ, waiting, ROOT, read_in(handle, 0, 5), thread))
    served.send(frame(Opcode.INTERRUPT, waiting | 1, 0, struct.pack("<Q", waiting)))
    for _ in range(3):
        assert served.ask(Opcode.STATFS).errno == 0  # Also checks that no other answer came.
