"""Lists what an image holds, as CycloneDX 1.6, and compares its Debian packages with a lock.

    sbom.py NAME VERSION    prints the document
    sbom.py --packages      prints the Debian packages, as a lock has them
    sbom.py --locked FILE   exit status 1, and a line for each package that differs

Runs inside the image while it is built, on the standard library. There is no date and no serial
number in the document, so that equal images have equal ones.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

_UNPINNED = "(none)"


def debian_packages() -> dict[str, tuple[str, str]]:
    """Name to (version, architecture) of each installed package."""
    form = "${db:Status-Status} ${Package} ${Version} ${Architecture}\\n"
    listed = subprocess.run(
        ["dpkg-query", "--show", f"--showformat={form}"], stdout=subprocess.PIPE, check=True
    )
    lines = [line.split() for line in listed.stdout.decode().splitlines()]
    return {name: (version, arch) for status, name, version, arch in lines if status == "installed"}


def document(name: str, version: str) -> dict[str, Any]:
    """The list of components of this system and this Python."""
    release = platform.freedesktop_os_release()
    distribution = f"{release['ID']}-{release.get('VERSION_ID', 'unknown')}"
    components = [
        _component(
            package, number, "deb", f"{release['ID']}/", f"?arch={arch}&distro={distribution}"
        )
        for package, (number, arch) in sorted(debian_packages().items())
    ]
    found = {_normalized(item.metadata["Name"]): item for item in metadata.distributions()}
    for key, item in sorted(found.items()):
        component = _component(key, item.version, "pypi")
        if "License-Expression" in item.metadata:
            component["licenses"] = [{"expression": item.metadata["License-Expression"]}]
        components.append(component)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {"type": "container", "bom-ref": name, "name": name, "version": version}
        },
        "components": components,
    }


def differences(locked: Path) -> list[str]:
    """One line for each package whose version is not the locked one.

    Args:
        locked: lines ``NAME=VERSION``; those that begin with # are comments.
    """
    lines = [line for line in locked.read_text().splitlines() if line and line[0] != "#"]
    expected = dict(line.split("=", 1) for line in lines)
    found = {name: version for name, (version, _) in debian_packages().items()}
    return [
        f"{name}: locked {expected.get(name, _UNPINNED)}, here {found.get(name, _UNPINNED)}"
        for name in sorted({*expected, *found})
        if expected.get(name) != found.get(name)
    ]


def _component(
    name: str, version: str, kind: str, vendor: str = "", rest: str = ""
) -> dict[str, Any]:
    # The specification of package URLs: what a version may have unquoted
    url = f"pkg:{kind}/{vendor}{quote(name, safe='.-_~')}@{quote(version, safe='.-_~')}{rest}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def _normalized(name: str) -> str:
    """A distribution's name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    """See the module's docstring."""
    if arguments[0] == "--locked":
        found = differences(Path(arguments[1]))
        sys.stderr.writelines(f"{line}\n" for line in found)
        return 1 if found else 0
    if arguments == ["--packages"]:
        packages = sorted(debian_packages().items())
        sys.stdout.writelines(f"{name}={version}\n" for name, (version, _) in packages)
        return 0
    json.dump(document(*arguments), sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
