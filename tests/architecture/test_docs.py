"""The documents name codes, commands, targets and modules that exist."""

import ast
import re
from pathlib import Path

from sidecar import errors
from sidecar.cli.main import cli

ROOT = Path(__file__).parents[2]


def test_troubleshooting_has_every_code_once_and_no_other():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    documented = re.findall(r"^\| (SC\d{4}) \| (\w+) \|", text, re.MULTILINE)
    assert sorted(documented) == sorted((error.code, error.name) for error in _errors())
    assert len(dict(documented)) == len(documented)


def test_documents_name_only_commands_and_targets_that_exist():
    commands = set(cli.commands)
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        text = path.read_text()
        assert set(re.findall(r"`sidecar ([a-z]+)", text)) <= commands, path
        assert set(re.findall(r"`?make ([a-z]+)`", text)) <= targets, path


def test_relative_links_lead_somewhere():
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"


def _errors():
    """Every error with its own code; groups inherit their parent's."""
    found, pending = [], errors.SidecarError.__subclasses__()
    while pending:
        error = pending.pop()
        pending.extend(error.__subclasses__())
        if "code" in vars(error):
            found.append(error)
    return found


def test_the_architecture_names_modules_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    modules = [path.relative_to(ROOT / "sidecar") for path in (ROOT / "sidecar").rglob("*.py")]
    names = {str(module) for module in modules}
    names |= {str(Path(*module.parts[start:])) for module in modules for start in (1, 2, 3)}
    for named in re.findall(r"`(?:sidecar/|mounter/)?([a-z_0-9/]+\.py)`", text):
        assert named in names, named


def test_what_is_too_long_is_explained():
    """No class over 30 methods, no module over 500 lines, unless the architecture says why."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    explained = text.partition("## What is longer than it should be")[2]
    for path in (ROOT / "sidecar").rglob("*.py"):
        source = path.read_text()
        if source.count("\n") > 500:
            assert f"`{path.name}`" in explained, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
                assert len(methods) <= 30 or f"`{node.name}`" in explained, (path, node.name)
