"""The parts of a data set: source, target, val, and those that training does without."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icda.data.base import Sample, SegmentationDataset
from icda.data.setup import open_part
from icda.errors import UserError

NEEDED = ("source", "target", "val")


@dataclass(frozen=True)
class Finding:
    """Something that a person should know about a part.

    Args:
        part: The part's name.
        text: One line.
        paths: Files that it is about; the first few are shown.
        stops: Whether training or validation cannot go on as asked for before it is mended.
        file: The damaged file that it is about; None if it is about something else.
    """

    part: str
    text: str
    paths: tuple[Path, ...] = ()
    stops: bool = True
    file: Path | None = None


@dataclass(frozen=True)
class Job:
    """Something to be made.

    Args:
        what: What, and how much of it.
        where: File or folder that it goes to.
        make: Makes it, and returns what was wrong.
        told: What there is to say once it is made.
    """

    what: str
    where: Path
    make: Callable[[], list[Finding]]
    told: Callable[[], list[Finding]] = list


@dataclass(frozen=True)
class Part:
    """A part of a data set as its configuration describes it.

    Args:
        name: ``source``, ``target``, ``val``, ``test``, or ``score_also.<name>``.
        node: Its configuration.
        found: Everything there is of it, incomplete samples too; None if it cannot be opened at all.
        used: What training opens; None if it refuses.
        error: Why it is refused.
        purpose: What a part that training and validation do without is for; empty for the others.
    """

    name: str
    node: Any
    found: SegmentationDataset | None
    used: SegmentationDataset | None
    error: str = ""
    purpose: str = ""

    @property
    def dataset(self) -> SegmentationDataset | None:
        """What training will use, or else what there is."""
        return self.used or self.found

    @property
    def is_needed(self) -> bool:
        """Whether training or validation needs it."""
        return not self.purpose

    @property
    def is_there(self) -> bool:
        """Whether its folder exists."""
        return self.node.get("root") is None or Path(self.node.root).expanduser().is_dir()

    @property
    def translations(self) -> Path | None:
        """Folder of night translations that its configuration names."""
        folder = self.node.get("translations")
        return None if folder is None else Path(folder).expanduser()


def open_parts(dataset: Mapping[str, Any]) -> list[Part]:
    """Open all parts of a ``dataset`` configuration, whole or not.

    Args:
        dataset: The configuration, resolved. Parts that are null are left out.
    """
    nodes = {name: (dataset.get(name), "") for name in NEEDED}
    nodes["test"] = (dataset.get("test"), "predictions for a benchmark's server (scripts/predict.py)")
    for name, node in (dataset.get("score_also") or {}).items():
        nodes[f"score_also.{name}"] = (node, "scoring on it as well (scripts/eval.py)")
    paired = dataset.get("reference", "pairs") == "pairs"
    return [_open(name, node, purpose, paired) for name, (node, purpose) in nodes.items() if node is not None]


def _open(name: str, node: Any, purpose: str, paired: bool) -> Part:
    """Open a part twice: leniently, to see everything there is, and as training does."""
    changes: dict[str, Any] = {}
    translations = node.get("translations")
    if translations is not None and not Path(translations).expanduser().is_dir():
        changes["translations"] = None
    if name == "target" and "references" in node and not paired:
        changes["references"] = False
    keep = {"unpaired": "keep"} if node.get("unpaired") == "drop" else {}
    found = used = None
    error = ""
    try:
        found = open_part(node, check=False, **changes, **keep)
        if "translation" in found.missing:
            changes["translations"] = None
        used = open_part(node, **changes)
    except UserError as refused:
        error = str(refused)
    return Part(name, node, found, used, error, purpose)


def numbered(number: int, thing: str) -> str:
    """``1 pair``, ``2 pairs``.

    Args:
        number: How many.
        thing: One of them.
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def damaged(part: Part, sample: Sample, file: Path, message: str) -> Finding:
    """A file that cannot be used.

    Args:
        part: The part.
        sample: The sample that was read.
        file: The file of it that was read.
        message: What was wrong; it may be the sample's image, with which the file is compared.
    """
    about = sample.image if message.startswith(f"{sample.image} ") else file
    return Finding(part.name, message, stops=part.is_needed, file=about)


def unique(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without repetition: a damaged file may be met in several steps.

    Args:
        findings: Some of them equal, or about the same file.
    """
    found: dict[tuple[str, Path | str], Finding] = {}
    for finding in findings:
        found.setdefault((finding.part, finding.file or finding.text), finding)
    return list(found.values())


def one_sample(dataset: SegmentationDataset, index: int) -> SegmentationDataset:
    """A data set of one sample that reads from its files: small enough to be handed to a process with each task.

    Args:
        dataset: Any data set.
        index: Position of the sample.
    """
    one = copy.copy(dataset)
    one.samples, one.strays, one.cache = (dataset.samples[index],), (), None
    return one
