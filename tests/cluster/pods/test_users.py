"""An image with a user of its own: what it makes belongs to it, as on a local disk."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.pods.conftest import EXPERIMENT_IMAGE, Run, cloud
from tests.support.cluster_pods import MAIN, ClusterPod
from tests.support.stores_in_a_pod import Stores

pytestmark = pytest.mark.timeout(300)

IMAGE_USER = 1000
"""The user of images/experiment. A kubelet takes no group from an image, so the group is 0."""

CONTEXTS: dict[str, dict[str, int]] = {
    "of-the-image": {},
    "with-fs-group": {"fsGroup": 2000},
    "of-the-pod": {"runAsUser": 3000, "runAsGroup": 3001},
}
MAKES = """
import json, os
os.chdir(os.environ["POLYAXON_RUN_OUTPUTS_PATH"])
os.mkdir("made")
with open("made/file", "w") as file:
    file.write("content")
os.symlink("made/file", "link")
with open("made/file", "a") as file:
    file.write(" and more")
def shown(name):
    found = os.lstat(name)
    return found.st_uid, found.st_gid, oct(found.st_mode & 0o7777)
print(json.dumps({name: shown(name) for name in (".", "made", "made/file", "link")}))
"""
USES = """
import os
os.chdir(os.environ["POLYAXON_RUN_OUTPUTS_PATH"])
print(os.stat("made/file").st_uid, open("made/file").read())
open("made/file", "a").write(" later")
os.mkdir("made/later")
"""


def shown(pod: ClusterPod, container: str = MAIN) -> dict[str, Any]:
    """What the program printed."""
    printed: dict[str, Any] = json.loads(pod.logs(container).splitlines()[-1])
    return printed


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("name", ["s3", "gcs", "azure"])
def test_what_is_made_belongs_to_its_maker(
    stores: Stores, run: Run, name: str, context: str
) -> None:
    settings = CONTEXTS[context]
    user = settings.get("runAsUser", IMAGE_USER)
    # A directory with the set-group-ID bit gives its group to what is made in it.
    group = settings.get("fsGroup", settings.get("runAsGroup", 0))
    place = f"users/{name}/{context}"
    pod = run(
        f"{name}-{context}",
        ["python3", "-c", MAKES],
        outputs=name,
        run=place,
        securityContext=settings,
    )
    assert pod.wait_until_ended() == "Succeeded", pod.described()
    made = shown(pod)
    for path in ("made", "made/file", "link"):
        assert made[path][:2] == [user, group], path
    again = run(
        f"{name}-{context}-again",
        ["python3", "-c", USES],
        outputs=name,
        run=place,
        securityContext=settings,
    )
    assert again.wait_until_ended() == "Succeeded", again.described()
    assert again.logs() == f"{user} content and more\n"
    assert cloud(stores, name).read(f"{place}/made/file") == b"content and more later"


SHARES = """
import json, os, sys, time
os.chdir(os.environ["POLYAXON_RUN_OUTPUTS_PATH"])
own, other = sys.argv[1:]
os.mkdir(own)
open(own + "/log", "w").write(own)
while not os.path.exists(other + "/log"):
    time.sleep(0.1)
answers = {}
for what, path, mode in (("read", "log", "r"), ("change", "log", "a"), ("make", "new", "w")):
    try:
        open(other + "/" + path, mode).close()
        answers[what] = True
    except PermissionError:
        answers[what] = False
print(json.dumps({"owner": os.stat(own + "/log").st_uid, **answers}))
"""


@pytest.mark.parametrize("group", [None, 2000])
def test_containers_with_different_users(run: Run, group: int | None) -> None:
    """Each user has its own files, and may read the other's as modes and umask allow."""
    containers = [
        {"name": "one", "image": EXPERIMENT_IMAGE, "command": ["python3", "-c", SHARES, "1", "2"]},
        {
            "name": "two",
            "image": EXPERIMENT_IMAGE,
            "command": ["python3", "-c", SHARES, "2", "1"],
            "securityContext": {"runAsUser": 2002, "runAsGroup": 2003},
        },
    ]
    pod = run(
        f"two-users-{group or 'none'}",
        [],
        outputs="s3",
        run=f"users/two/{group}",
        containers=containers,
        securityContext={} if group is None else {"fsGroup": group},
    )
    assert pod.wait_until_ended() == "Succeeded", pod.described()
    expected = {"read": True, "change": False, "make": False}
    assert shown(pod, "one") == {"owner": IMAGE_USER, **expected}
    assert shown(pod, "two") == {"owner": 2002, **expected}
