"""``python -m tests.support.strict_s3 --port PORT --directory DIRECTORY``.

The login is read from STRICT_S3_ACCESS_KEY_ID, STRICT_S3_SECRET_ACCESS_KEY and
STRICT_S3_SESSION_TOKEN.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tests.support.strict_s3.http_front import HOST, Front
from tests.support.strict_s3.service import Service
from tests.support.strict_s3.signature import Account
from tests.support.strict_s3.state import State


def main() -> None:
    """Serve until a signal ends it: all that was answered is written down."""
    parser = argparse.ArgumentParser(prog="strict_s3")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default=HOST, help="the address to listen at")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--region", default="us-east-1")
    arguments = parser.parse_args()
    account = Account(
        os.environ["STRICT_S3_ACCESS_KEY_ID"],
        os.environ["STRICT_S3_SECRET_ACCESS_KEY"],
        os.environ.get("STRICT_S3_SESSION_TOKEN", ""),
    )
    service = Service(State(arguments.directory), account, arguments.region)
    Front(arguments.port, service, arguments.host).serve_forever()


if __name__ == "__main__":
    main()
