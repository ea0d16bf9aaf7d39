"""The samples in an exact copy of the source document."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "fixtures" / "catalogues" / "customize-volumes.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    text = DOCUMENT.read_bytes().decode()
    return re.findall(rf"```{language}\n(.*?\n)```", text, re.DOTALL)


CATALOGUE = blocks("yaml")[0]
SELECT_DATA = blocks("yaml")[1]
SELECT_OUTPUTS = blocks("yaml")[2]
S3_REQUIRED, S3_ALL, AZURE = blocks("json")
