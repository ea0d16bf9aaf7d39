"""The list of failures that are expected of the test suites, and why they are right.

A failure that is not listed is a defect; an entry without a failure must be removed.
"""

from __future__ import annotations

import re
from typing import NamedTuple

EVERYWHERE = frozenset({"kernel-root", "kernel-nobody", "libfuse-root"})
KERNEL = frozenset({"kernel-root", "kernel-nobody"})
AS_ROOT = frozenset({"kernel-root", "libfuse-root"})
LIBFUSE = frozenset({"libfuse-root"})


class Expected(NamedTuple):
    """Cases of one test suite that fail for one reason.

    Attributes:
        cases: a regular expression that matches the whole name of a case.
        says: a regular expression that is found in the suite's message.
        why: the heading in SEMANTICS.md.
        where: transport and user.
        always: whether at least one case must fail; else it depends on timing.
    """

    tool: str
    cases: str
    says: str
    why: str
    where: frozenset[str] = EVERYWHERE
    always: bool = True

    def explains(self, case: str, text: str) -> bool:
        """Whether this is why a case failed."""
        return bool(re.fullmatch(self.cases, case) and re.search(self.says, text))


_NAMES = "N2 Names are up to 255 bytes of UTF-8"
_HARD_LINKS = "X1 Hard links are refused"
_SPECIAL = "X2 Devices, FIFOs and sockets are refused"
_ONE_TIME = "A3 There is one time"
_LINKS = "A5 The mount itself has the volume's mode and owner"
_IOCTL = "X6 ioctl is refused"
_EXTENDED = "X3 Extended attributes are refused"
_NAMELESS = "T3 libfuse cannot stat a file that lost its name"
_TYPES = "(fifo|block|char|socket)"

_RUNNING = "W7 What runs is not written"

EXPECTED: tuple[Expected, ...] = (
    # --- pjdfstest
    Expected("pjdfstest", rf"(\w+::)+{_TYPES}", "EPERM|assertion failed: mknod", _SPECIAL),
    Expected("pjdfstest", r"mk(fifo|nod)::\w+", "EPERM|is_ok", _SPECIAL),
    Expected("pjdfstest", "open::(fifo_nonblock_wronly|socket_error)", "EPERM", _SPECIAL),
    Expected("pjdfstest", r"link::\w+::regular", "EPERM|is_ok", _HARD_LINKS),
    Expected("pjdfstest", r"unlink::u\w+::regular", "EPERM", _HARD_LINKS),
    Expected(
        "pjdfstest",
        "rename::(preserve_metadata|to_multiply_linked)::regular",
        "EPERM",
        _HARD_LINKS,
    ),
    Expected("pjdfstest", "chmod::update_ctime::(regular|dir)", "did not change", _ONE_TIME),
    Expected(
        "pjdfstest",
        "utimensat::(changes_timestamps::(regular|dir)|y2038|follow_symlink|utime_omit|subsecond)",
        "TimeSpec",
        _ONE_TIME,
    ),
    Expected("pjdfstest", "rename::updates_link_parent", "left: 2 right: 3", _LINKS),
    # It expects paths of 4,095 bytes to work; keys are shorter.
    Expected("pjdfstest", r"(\w+::)+enametoolong_path", "name too long", _NAMES),
    # The truncated program may have died before the second check.
    Expected("pjdfstest", "open::etxtbsy", "unwrap_err", _RUNNING, always=False),
    Expected("pjdfstest", "unlink::open_file_not_freed", "ENOENT", _NAMELESS, LIBFUSE),
    # --- stress-ng, which prints "skipping" for what the file system does not support
    Expected("stress_ng", "link", "link calls not allowed", _HARD_LINKS),
    Expected("stress_ng", "fiemap", "FS_IOC_FIEMAP not supported", _IOCTL),
    Expected("stress_ng", "verity", "verity", _IOCTL),
    Expected("stress_ng", "readahead", "fstat failed, errno=2", _NAMELESS, LIBFUSE),
    # It calls fstat(2) for the size of a file that it has unlinked.
    Expected("stress_ng", "fsize", "expecting EFBIG", _NAMELESS, LIBFUSE, always=False),
    Expected("stress_ng", "xattr", "does not support xattr", _EXTENDED),
)
