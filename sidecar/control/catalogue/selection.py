"""What one run selects: `environment.persistence` of a polyaxonfile."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.contract.spec_document import nearest
from sidecar.control.catalogue.yaml_document import YamlValue, parse_documents
from sidecar.errors import SelectionInvalid, UnknownKey


@dataclass(frozen=True, slots=True)
class Selection:
    """The volumes that a run names.

    Attributes:
        data: names of data volumes in the run's order; None for every one.
        outputs: name of the outputs volume; None for the first writable one.
        origin: how messages name the mapping that holds ``data`` and ``outputs``.
    """

    data: tuple[str, ...] | None = None
    outputs: str | None = None
    origin: str = "environment.persistence"


def parse_polyaxonfile(text: str, where: str) -> Selection:
    """The selection of a polyaxonfile. The rest of the file is Polyaxon's and is not checked.

    Args:
        text: YAML or JSON, one or more documents, of which at most one selects volumes.
        where: how messages name its origin, such as the file.

    Raises:
        SelectionInvalid: not YAML, or a wrong shape such as ``outputs`` as a list.
        UnknownKey: something beside ``data`` and ``outputs``.
    """
    sections = [
        section
        for document in parse_documents(text, where, SelectionInvalid)
        if (section := _persistence(document, where)) is not None
    ]
    if not sections:
        return Selection()
    if len(sections) > 1:
        raise SelectionInvalid(
            f"{where}: {len(sections)} documents have `environment.persistence`", "keep one"
        )
    return parse_selection(sections[0], f"{where}: environment.persistence")


def parse_selection(section: dict[str, YamlValue], origin: str) -> Selection:
    """The selection from its mapping (``data``: list or null, ``outputs``: string or null).

    Args:
        section: the mapping, as parsed.
        origin: see :class:`Selection`.

    Raises:
        SelectionInvalid: a wrong shape.
        UnknownKey: something beside ``data`` and ``outputs``.
    """
    known = ["data", "outputs"]
    for key in section:
        if key not in known:
            raise UnknownKey(f"unknown key `{key}` in {origin}{nearest(key, known)}")
    return Selection(
        data=_data(section.get("data"), origin),
        outputs=_outputs(section.get("outputs"), origin),
        origin=origin,
    )


def _persistence(document: YamlValue, where: str) -> dict[str, YamlValue] | None:
    if not isinstance(document, dict):
        raise SelectionInvalid(f"{where}: must be a mapping")
    if "persistence" in document:
        # Polyaxon ignores it there; without this error every volume would be mounted.
        raise SelectionInvalid(
            f"{where}: `persistence` is at the top", "put it under `environment:`"
        )
    environment = document.get("environment")
    if environment is None:
        return None
    if not isinstance(environment, dict):
        raise SelectionInvalid(f"{where}: `environment` must be a mapping")
    section = environment.get("persistence")
    if section is None or isinstance(section, dict):
        return section
    raise SelectionInvalid(f"{where}: `environment.persistence` must be a mapping")


def _data(value: YamlValue, origin: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise SelectionInvalid(f"{origin}.data: must be a list of names", "write `data: ['NAME']`")
    return tuple(_name(item, f"{origin}.data[{index}]") for index, item in enumerate(value))


def _outputs(value: YamlValue, origin: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, list):
        raise SelectionInvalid(
            f"{origin}.outputs: is a list, but a run has one outputs volume",
            "write `outputs: 'NAME'`",
        )
    return _name(value, f"{origin}.outputs")


def _name(value: YamlValue, where: str) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise SelectionInvalid(
            f"{where}: must be a volume's name", "a string, in quotes if need be"
        )
    return value
