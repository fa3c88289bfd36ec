"""Lists of what training and scoring take from larger data sets: pairs of Dark Zurich, night images of BDD100K."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from icda.data.bdd100k import ATTRIBUTE_FILES, LIST_NAME, NAME, BDD100KNight, night_list
from icda.data.darkzurich import DarkZurich
from icda.data.files import list_files
from icda.data.io import IMAGE_ENDINGS
from icda.data.pairs import compare_pairs, read_pairs, write_pairs
from icda.data.prepare.parts import Finding, Job, Part, numbered
from icda.data.prepared import prepared_folder, whole_file
from icda.data.rare_class import size_and_time
from icda.data.setup import open_part
from icda.errors import UserError

PAIRS_FILE = "night_day_pairs.csv"
TAGGED_FILE = "images_night_tagged.txt"
COMMENT = "# "


def plan_pairs(part: Part, prepared_dir: Path) -> list[Job | Finding]:
    """The list of the pairs that training takes, if the part is Dark Zurich's train split, and how others differ.

    Args:
        part: The part.
        prepared_dir: The list goes to the data set's folder below it, as ``night_day_pairs.csv``.
    """
    dataset = part.used
    if not isinstance(dataset, DarkZurich) or dataset.split != "train" or not dataset.pairs:
        return []
    plan: list[Job | Finding] = [*_comparisons(part)]
    file = prepared_folder(prepared_dir, dataset.name, dataset.root) / PAIRS_FILE
    if not _holds(file, dataset):
        make = partial(_write, file, dataset)
        plan.append(Job(f"list of the {numbered(len(dataset.pairs), 'pair')} night,day", file, make))
    return plan


def _holds(file: Path, dataset: DarkZurich) -> bool:
    try:
        return file.is_file() and {night: day for _, night, day in read_pairs(dataset.name, file)} == dataset.pairs
    except UserError:
        return False


def _write(file: Path, dataset: DarkZurich) -> list[Finding]:
    write_pairs(file, dataset.pairs.items())
    return []


def _comparisons(part: Part) -> list[Finding]:
    """How the other sources of pairs that are there differ from the official lists."""
    asked = part.node.get("pairs", "auto")
    named = [asked] if asked not in (None, *DarkZurich.PAIRS) else []
    found = {}
    for source in ("corresp", *named, "gps"):
        try:
            found[source] = open_part(part.node, check=False, pairs=source, unpaired="keep")
        except UserError:  # what is not there, or not asked for and faulty, is not compared
            continue
    official = found.pop("corresp", None)
    if official is None:
        return []
    lines = []
    for source, other in found.items():
        name = source if source == "gps" else "the list"
        difference = compare_pairs(official.pairs, other.pairs, ("corresp", name))
        lines.append(f"corresp and {name}: {difference}")
        if source == "gps":
            lines.append(f"gps: {other.pairing}")
    return [Finding(part.name, line, stops=False) for line in lines]


def plan_night_list(part: Part, prepared_dir: Path) -> list[Job | Finding]:
    """The list of images tagged as night, if the part is BDD100K's night images and the field's list is missing.

    Args:
        part: The part.
        prepared_dir: The list goes to ``bdd100k_night-<root>/images_night_tagged.txt`` below it.
    """
    if not str(part.node.get("_target_", "")).endswith(f".{BDD100KNight.__name__}"):
        return []
    if part.used is not None and part.node.get("night") == "tagged":
        text = f"{part.used.untagged} images of BDD100K have no tag of the time of day"
        return [Finding(part.name, text, stops=False)]
    # The adapter names the file where that is what it lacks.
    if part.found is not None or LIST_NAME not in part.error or not (tags := _tag_files(part.node.root)):
        return []
    file = prepared_folder(prepared_dir, NAME, part.node.root) / TAGGED_FILE
    if file.is_file() and _made_of(part.node.root, tags) in _comments(file):
        return _tell_tagged(part, file)
    make, told = partial(_write_night_list, part, file), partial(_tell_tagged, part, file)
    return [Job("list of BDD100K's images that are tagged as night", file, make, told)]


def _tag_files(root: str) -> list[Path]:
    base = Path(root).expanduser()
    forms = [form.format(split) for form in ATTRIBUTE_FILES for split in BDD100KNight.SPLITS]
    files = [base / package / form for package in ("", *BDD100KNight.PACKAGES) for form in forms]
    return [path for path in files if path.is_file()]


def _made_of(root: str, tags: Sequence[Path]) -> str:
    """What a list is made of, for a comment in it: the tag files' sizes and times of change, the number of images."""
    base = Path(root).expanduser()
    states = [(path.relative_to(base).as_posix(), *size_and_time(path)) for path in tags]
    digest = hashlib.sha256(repr(states).encode()).hexdigest()[:16]
    folders = [
        base / package / place for package in ("", *BDD100KNight.PACKAGES) for place in BDD100KNight.IMAGE_FOLDERS
    ]
    images = sum(len(list_files(folder, IMAGE_ENDINGS)) for folder in folders if folder.is_dir())
    return f"made of {len(tags)} tag files (sizes and times {digest}) and {images} images"


def _comments(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.removeprefix(COMMENT) for line in lines if line.startswith(COMMENT)]


def _write_night_list(part: Part, file: Path) -> list[Finding]:
    try:
        made_of = COMMENT + _made_of(part.node.root, _tag_files(part.node.root))
        found = night_list(part.node.root)
    except UserError as error:
        return [Finding(part.name, str(error), stops=False)]
    told = f"{COMMENT}{len(found.lines)} images are tagged as night; {found.untagged} have no tag of the time of day"
    with whole_file(file) as stream:
        stream.write("".join(f"{line}\n" for line in (told, made_of, *found.lines)).encode())
    return []


def _tell_tagged(part: Part, file: Path) -> list[Finding]:
    """What the first line of a list says, and how the list is used."""
    with file.open(encoding="utf-8") as stream:
        told = stream.readline().removeprefix(COMMENT).strip()
    return [Finding(part.name, f"{told}; to use these: dataset.{part.name}.list_file={file}", stops=False)]
