"""Night-like versions of labelled images, made once: what ``scripts/translate.py`` does.

Only the illumination part of CEM is applied (method section 2), by ``StyleIllumination`` or ``RelightIllumination``.
Training reads the files with ``cem=translated`` and adds jitter, blur and warp itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import albumentations as A
import cv2
import numpy as np
from omegaconf import DictConfig, OmegaConf

from icda.data.base import SegmentationDataset
from icda.data.prepare.parts import one_sample
from icda.data.prepared import TRANSLATIONS, check_apart, relative_root, whole_file, writing_to
from icda.data.processes import Bar, in_processes
from icda.data.setup import open_part
from icda.errors import UserError
from icda.transforms import RelightIllumination, StyleIllumination, reseed
from icda.typed_config import Check, checked

log = logging.getLogger(__name__)

RECORD = "translations.json"
VERSION = 1
"""Rises whenever the same settings make other pictures."""
METHODS = ("style", "relight")
SIZES = ("dataset", "original")


@dataclass(frozen=True)
class TranslateConfig:
    """What ``scripts/translate.py`` composes, but for the ``dataset`` group."""

    data_dir: str
    prepared_dir: str
    output: str | None
    method: str
    strength: list[float]
    size: str
    seed: int
    workers: int
    progress: bool


_CHECKS: tuple[Check, ...] = (
    ("method", lambda v: v in METHODS, " or ".join(METHODS)),
    ("strength", lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1, "[smallest, largest], from 0 to 1"),
    ("size", lambda v: v in SIZES, " or ".join(SIZES)),
    ("seed", lambda v: 0 <= v < 2**63, "from 0 to 2^63 - 1"),
    ("workers", lambda v: v >= 0, "0 or more"),
)


@dataclass(frozen=True)
class _Task:
    """One image to translate: data sets of a single sample, the seed of its randomness, and where it goes."""

    source: SegmentationDataset
    style: SegmentationDataset | None
    seed: int
    path: Path


def translate(cfg: DictConfig, folder: Path) -> Path:
    """Make the translations that are not there yet, and tell how to train with them.

    Args:
        cfg: Composed from ``conf/translate.yaml``.
        folder: The run's folder; nothing is written there.

    Returns:
        The folder of translations: each image at its place in the data set's tree, as a PNG file.

    Raises:
        UserError: If a setting or the data cannot be used, or the folder holds something else.
    """
    config = checked(TranslateConfig, OmegaConf.masked_copy(cfg, [key for key in cfg if key != "dataset"]), _CHECKS)
    dataset = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)).dataset
    source, target = _open(config, dataset)
    output = Path(
        config.output or Path(config.prepared_dir, TRANSLATIONS, f"{dataset.name}_{config.method}")
    ).expanduser()
    for part in filter(None, (source, target)):
        check_apart("output", output, part.name, part.root, config.data_dir, (s.image for s in part.samples))
    places = _places(source, output)
    with writing_to(output):
        _settle_record(output, _record(config, source, target))
        tasks = [
            _task(config.seed, source, target, index, output / place)
            for index, place in enumerate(places)
            if not (output / place).is_file()
        ]
        work = partial(_translate, config.method, tuple(config.strength))
        results = in_processes(work, tasks, config.workers, chunk=1)
        list(Bar(results, "translating", len(tasks), unit="image", disable=not config.progress))
    log.info("%d translations of %s in %s, %d made now", len(places), source.name, output, len(tasks))
    log.info("train with them: %s", _train_command(config, dataset, output))
    return output


def _open(config: TranslateConfig, dataset: DictConfig) -> tuple[SegmentationDataset, SegmentationDataset | None]:
    """The labelled images, and the night images where the method looks at them."""
    if dataset.get("source") is None:
        raise UserError(f"dataset={dataset.name} has no labelled day images (dataset.source), it is only for scoring")
    if config.method == "style" and dataset.get("target") is None:
        raise UserError(
            "method=style takes the light of night images, but dataset.target is null; choose method=relight, or a "
            "data set with a target"
        )
    if dataset.get("prepare") is not None:
        open_part(dataset.prepare)
    parts = [
        None if node is None else open_part(node, **_reduced(config, node))
        for node in (dataset.source, dataset.target if config.method == "style" else None)
    ]
    return parts[0], parts[1]


def _reduced(config: TranslateConfig, node: DictConfig) -> dict[str, Any]:
    """Arguments of a data set that keep it from looking for files that nothing reads, and from resizing."""
    changes: dict[str, Any] = {"translations": None, "references": False}
    if config.size == "original":
        changes["size"] = None
    return {key: value for key, value in changes.items() if key in node}


def _places(source: SegmentationDataset, output: Path) -> list[PurePath]:
    """Where each image's translation goes, below the output folder."""
    places = [source.place(sample).with_suffix(".png") for sample in source.samples]
    first: dict[PurePath, int] = {}
    for index, place in enumerate(places):
        if first.setdefault(place, index) != index:
            one, other = (source.samples[i].image for i in (first[place], index))
            raise UserError(f"{one} and {other} would both be translated to {output / place}; rename one of them")
    return places


def _record(
    config: TranslateConfig, source: SegmentationDataset, target: SegmentationDataset | None
) -> dict[str, Any]:
    """Everything that the pictures depend on."""
    return {
        "version": VERSION,
        "source": source.name,
        "source_root": relative_root(config.prepared_dir, source.root),
        "target": target and target.name,
        "target_root": target and relative_root(config.prepared_dir, target.root),
        "target_size": target and _size(target),
        "target_images": target and _images(target),
        "method": config.method,
        "strength": config.strength if config.method == "style" else None,
        "seed": config.seed,
        "size": _size(source),
    }


def _size(dataset: SegmentationDataset) -> str | list[int]:
    return "original" if dataset.size is None else list(dataset.size)


def _images(dataset: SegmentationDataset) -> str:
    """How many images there are, and a digest of their names: which of them is drawn depends on all."""
    keys = "\n".join(sample.key for sample in dataset.samples).encode(errors="surrogateescape")
    return f"{len(dataset)}, {hashlib.sha256(keys).hexdigest()[:16]}"


def _settle_record(output: Path, record: dict[str, Any]) -> None:
    """Write the record of a new folder; refuse a folder with another record, or with files but no record."""
    path = output / RECORD
    if not path.is_file():
        if output.is_dir() and any(output.iterdir()):
            raise UserError(f"{output} holds files, but no {RECORD}; give an empty folder as output=")
        with whole_file(path) as file:
            file.write(json.dumps(record, indent=1).encode() + b"\n")
        return
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove the folder, or give another as output=") from error
    if found != record:
        other = found if isinstance(found, dict) else {}
        changed = [k for k in dict.fromkeys([*record, *other]) if other.get(k) != record.get(k)]
        raise UserError(
            f"{output} holds translations made with other settings: "
            + ", ".join(f"{k} {other.get(k)} (asked for: {record.get(k)})" for k in changed)
            + "; give another folder as output=, or remove this one"
        )


def _task(
    seed: int, source: SegmentationDataset, target: SegmentationDataset | None, index: int, path: Path
) -> _Task:
    """The task of one image. All that is random about it follows from the seed and the image's place."""
    place = source.place(source.samples[index]).with_suffix("").as_posix()
    digest = hashlib.sha256(place.encode(errors="surrogateescape")).digest()
    generator = np.random.default_rng([seed, *np.frombuffer(digest[:16], ">u4").tolist()])
    style = None if target is None else one_sample(target, int(generator.integers(len(target))))
    return _Task(one_sample(source, index), style, int(generator.integers(2**31)), path)


def _translate(method: str, strength: tuple[float, float], task: _Task) -> None:
    """Write the translation of one image."""
    images = {"image": task.source.image(0)}
    if task.style is not None:
        images["style_image"] = task.style.image(0)
    pipeline = A.Compose([StyleIllumination(strength=strength) if method == "style" else RelightIllumination()])
    reseed(pipeline, task.seed)
    # Their noise cannot be compressed: looking for repetitions would take ten times as long, for the same size.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY]
    done, data = cv2.imencode(".png", pipeline(**images)["image"][..., ::-1], options)
    assert done, task.path
    with whole_file(task.path) as file:
        file.write(data.tobytes())


def _train_command(config: TranslateConfig, dataset: DictConfig, output: Path) -> str:
    """The command that trains with the translations, to be pasted into a shell."""
    prefix = "" if "translations" in dataset.source else "+"
    values = {"data_dir": config.data_dir, f"{prefix}dataset.source.translations": str(output)}
    if Path(config.prepared_dir) != Path(config.data_dir, "icda_prepared"):
        values["prepared_dir"] = config.prepared_dir
    arguments = [f"dataset={dataset.name}", "cem=translated", *(_override(k, v) for k, v in values.items())]
    return shlex.join(["python", "scripts/train.py", *arguments])


def _override(key: str, value: str) -> str:
    """``key=value`` as Hydra reads it: what is more than a plain path in quotes, with \\ doubled before a quote."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", value):
        return f"{key}={value}"
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), value)
    return f'{key}="{escaped}"'
