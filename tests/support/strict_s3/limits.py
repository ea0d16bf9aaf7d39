"""The numbers of S3, which a test may scale down.

Sources: "Amazon S3 multipart upload limits", "Naming Amazon S3 objects", "Working with object
metadata", "Categorizing your objects using tags", "CopyObject", "UploadPartCopy", "DeleteObjects",
"ListObjectsV2", Amazon S3 User Guide and API Reference.
"""

from __future__ import annotations

from dataclasses import dataclass

# An image has this package without the product.
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True)
class Limits:
    """What a request may be.

    Attributes:
        max_put_bytes: of PutObject.
        min_part_bytes: of a part but the last, checked when the upload is completed.
        min_ranged_source_bytes: an object is larger than this, or no range of it is copied.
        max_copy_bytes: of CopyObject's source, and of UploadPartCopy's without a range.
        max_metadata_bytes: of names and values of user metadata together.
        max_head_bytes: of a request's headers.
        max_line_bytes: of a request's first line.
        max_page: lines in one answer of a listing.
        max_skew_s: between the clocks.
    """

    max_put_bytes: int = 5 * GIB
    min_part_bytes: int = 5 * MIB
    max_part_bytes: int = 5 * GIB
    max_parts: int = 10_000
    max_object_bytes: int = 10_000 * 5 * GIB
    min_ranged_source_bytes: int = 5 * MIB
    max_copy_bytes: int = 5 * GIB
    max_key_bytes: int = 1024
    max_metadata_bytes: int = 2 * KIB
    max_head_bytes: int = 8 * KIB
    max_line_bytes: int = 8 * KIB
    max_document_bytes: int = 2 * MIB
    max_page: int = 1000
    max_deletes: int = 1000
    max_tags: int = 10
    max_skew_s: int = 15 * 60
