"""Operations on buckets.

Sources: "ListBuckets", "CreateBucket", "DeleteBucket", "HeadBucket", "GetBucketLocation",
"GetBucketOwnershipControls", "Controlling ownership of objects and disabling ACLs", "General
purpose bucket naming rules".
"""

from __future__ import annotations

import re

from tests.support.strict_s3.call import Call
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer
from tests.support.strict_s3.object_operations import OWNER
from tests.support.strict_s3.xml_answers import iso_time, xml_answer

_NAME = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def list_buckets(call: Call) -> Answer:
    """ListBuckets."""
    items = [
        ("Bucket", [("Name", name), ("CreationDate", iso_time(0))])
        for name in sorted(call.state.buckets)
    ]
    owner = ("Owner", [("ID", OWNER), ("DisplayName", OWNER)])
    return xml_answer("ListAllMyBucketsResult", [owner, ("Buckets", items)])


def create_bucket(call: Call) -> Answer:
    """CreateBucket, in the server's region."""
    call.payload().read(call.limits.max_document_bytes)
    if not _NAME.fullmatch(call.bucket_name):
        raise S3Error("InvalidBucketName", fields={"BucketName": call.bucket_name})
    call.state.create(call.bucket_name)
    return Answer(200, {"Location": f"/{call.bucket_name}"})


def delete_bucket(call: Call) -> Answer:
    """DeleteBucket: an empty one."""
    call.state.delete(call.bucket_name)
    return Answer(204)


def head_bucket(call: Call) -> Answer:
    """HeadBucket."""
    call.allow("ListBucket")
    settings = call.bucket.settings
    return Answer(200, {"x-amz-bucket-region": settings.region or call.region})


def get_bucket_location(call: Call) -> Answer:
    """GetBucketLocation: empty for us-east-1."""
    call.allow("GetBucketLocation")
    region = call.bucket.settings.region or call.region
    return xml_answer("LocationConstraint", "" if region == "us-east-1" else region)


def get_bucket_ownership_controls(call: Call) -> Answer:
    """GetBucketOwnershipControls."""
    call.allow("GetBucketOwnershipControls")
    chosen = "ObjectWriter" if call.bucket.settings.acls else "BucketOwnerEnforced"
    return xml_answer("OwnershipControls", [("Rule", [("ObjectOwnership", chosen)])])
