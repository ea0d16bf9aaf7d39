"""The list of allowed differences between a mount and a local directory.

A test that is not listed must pass everywhere; a listed one must fail, in the listed way.
"""

from __future__ import annotations

from errno import EILSEQ, EINVAL, ENOENT, ENOTTY, EOPNOTSUPP, EPERM, errorcode
from typing import NamedTuple

OTHERWISE = 0
"""The call succeeds with a different result: an assertion of the test fails."""


class Difference(NamedTuple):
    """One difference.

    Attributes:
        how: the errno of the test's system call, or :data:`OTHERWISE`.
        paragraph: the heading in SEMANTICS.md.
    """

    how: int
    paragraph: str

    def __str__(self) -> str:
        """For the table, such as ``EPERM (X1)``."""
        # On Linux EOPNOTSUPP equals ENOTSUP; manual pages use the first name.
        names = {OTHERWISE: "otherwise", EOPNOTSUPP: "EOPNOTSUPP"}
        name = names.get(self.how) or errorcode[self.how]
        return f"{name} ({self.paragraph.partition(' ')[0]})"


_ON_EVERY_MOUNT = {
    "test_names.py::test_a_name_that_is_not_utf_8": Difference(
        EILSEQ, "N2 Names are up to 255 bytes of UTF-8"
    ),
    "test_attributes.py::test_the_access_time_is_kept": Difference(
        OTHERWISE, "A3 There is one time"
    ),
    "test_attributes.py::test_a_change_of_mode_moves_the_change_time_only": Difference(
        OTHERWISE, "A3 There is one time"
    ),
    "test_open.py::test_a_program_that_runs_is_not_emptied_by_a_reader": Difference(
        OTHERWISE, "W7 What runs is not written"
    ),
    "test_open.py::test_attributes_of_other_file_systems": Difference(
        ENOTTY, "X6 ioctl is refused"
    ),
    "test_rename.py::test_exchange": Difference(EINVAL, "C5 Two names are not exchanged"),
    "test_open.py::test_a_hard_link": Difference(EPERM, "X1 Hard links are refused"),
    "test_open.py::test_a_fifo": Difference(EPERM, "X2 Devices, FIFOs and sockets are refused"),
    "test_open.py::test_a_device": Difference(EPERM, "X2 Devices, FIFOs and sockets are refused"),
    "test_open.py::test_a_socket": Difference(EPERM, "X2 Devices, FIFOs and sockets are refused"),
    "test_open.py::test_extended_attributes": Difference(
        EOPNOTSUPP, "X3 Extended attributes are refused"
    ),
    "test_open.py::test_listing_extended_attributes": Difference(
        EOPNOTSUPP, "X3 Extended attributes are refused"
    ),
    "test_write.py::test_fallocate": Difference(EOPNOTSUPP, "X4 Space is not reserved"),
    "test_open.py::test_o_tmpfile_gives_a_file_without_a_name": Difference(
        EOPNOTSUPP, "X5 O_TMPFILE is refused"
    ),
}

_ON_LIBFUSE = {
    "test_rename.py::test_noreplace": Difference(EINVAL, "T2 libfuse renames without flags"),
    "test_rename.py::test_noreplace_of_a_directory": Difference(
        EINVAL, "T2 libfuse renames without flags"
    ),
    "test_directories.py::test_unlink_while_it_is_read": Difference(
        ENOENT, "T3 libfuse cannot stat a file that lost its name"
    ),
    "test_write.py::test_after_unlink": Difference(
        ENOENT, "T3 libfuse cannot stat a file that lost its name"
    ),
}

DIFFERENCES: dict[tuple[str, str], Difference] = {
    **{(test, "kernel"): difference for test, difference in _ON_EVERY_MOUNT.items()},
    **{(test, "libfuse"): difference for test, difference in _ON_EVERY_MOUNT.items()},
    **{(test, "libfuse"): difference for test, difference in _ON_LIBFUSE.items()},
}
"""(test, transport) to how it differs."""
