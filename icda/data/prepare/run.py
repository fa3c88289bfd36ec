"""The steps of ``scripts/prepare.py``: open, count, check, make, tell."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from icda.data.cache import ImageCache
from icda.data.prepare.caching import plan_cache, remove_cache
from icda.data.prepare.decode import open_files
from icda.data.prepare.lists import plan_night_list, plan_pairs
from icda.data.prepare.look import describe, inspect, table
from icda.data.prepare.parts import Finding, Job, Part, open_parts, unique
from icda.data.prepare.statistics import plan_statistics
from icda.data.prepare.train_ids import plan_train_ids
from icda.data.prepared import check_apart, exclusive, writing_to
from icda.data.setup import CACHE_FOLDER, open_part
from icda.errors import UserError
from icda.typed_config import Check, checked

log = logging.getLogger(__name__)

LEVELS = ("names", "headers", "full")


@dataclass(frozen=True)
class PrepareConfig:
    """What ``scripts/prepare.py`` composes, but for the ``dataset`` group."""

    data_dir: str
    prepared_dir: str
    check: str
    train_ids: bool
    cache: Any
    workers: int
    progress: bool


_CHECKS: tuple[Check, ...] = (
    ("check", lambda v: v in LEVELS, f"one of {', '.join(LEVELS)}"),
    ("cache", lambda v: v is True or v is False or v == "remove", "true, false or remove"),
    ("workers", lambda v: v >= 0, "0 or more"),
)


def prepare(cfg: DictConfig, folder: Path | None = None) -> None:
    """Say whether a data set is whole, and make what is to be made in ``prepared_dir``. Originals are never changed.

    Args:
        cfg: Composed from ``conf/prepare.yaml``.
        folder: Not used: there is no folder of a run.

    Raises:
        UserError: If training or validation lacks something, or ``prepared_dir`` cannot be written to.
    """
    config = checked(PrepareConfig, OmegaConf.masked_copy(cfg, [key for key in cfg if key != "dataset"]), _CHECKS)
    dataset = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)).dataset
    prepared_dir = Path(config.prepared_dir).expanduser()
    log.info("%s: data in %s, prepared files in %s\n", dataset.name, config.data_dir, prepared_dir)
    if config.cache == "remove":
        parts = open_parts(dataset)
        _refuse_own_folders(parts, config, prepared_dir)
        _remove(parts, ImageCache(prepared_dir / CACHE_FOLDER, config.data_dir))
        return
    if dataset.get("prepare") is not None:
        open_part(dataset.prepare)
    parts = open_parts(dataset)
    _refuse_own_folders(parts, config, prepared_dir)
    findings = _look(parts, config, dataset.get("published", True))
    findings += _make(parts, config, prepared_dir)
    order = [part.name for part in parts]
    findings = sorted(unique(findings), key=lambda finding: order.index(finding.part))
    _tell(findings)
    stops = sum(finding.stops for finding in findings)
    if stops:
        things = "1 thing has" if stops == 1 else f"{stops} things have"
        raise UserError(f"{dataset.name} is not ready: {things} to be mended, see above")
    log.info("%s is ready", dataset.name)


def _refuse_own_folders(parts: Sequence[Part], config: PrepareConfig, prepared_dir: Path) -> None:
    for part in parts:
        if (root := part.node.get("root")) is not None:
            samples = part.found.samples if part.found else ()
            files = [file for s in samples for file in (s.image, s.label, s.reference, s.invalid) if file is not None]
            name = part.found.name if part.found else f"dataset.{part.name}"
            check_apart("prepared_dir", prepared_dir, name, root, config.data_dir, files)


def _look(parts: Sequence[Part], config: PrepareConfig, published: bool) -> list[Finding]:
    """Print the table; return what is wrong."""
    rows, findings = [], []
    for part in parts:
        more_rows, more_findings = inspect(part, published)
        rows += more_rows
        findings += more_findings
    log.info("%s\n", table(rows))
    if config.check != "names":
        faulty = open_files(parts, config.check == "full", config.workers, config.progress)
        log.info("check=%s: files that cannot be used: %s\n", config.check, len(faulty) or "none")
        findings += faulty
    return findings


def _plan(parts: Sequence[Part], config: PrepareConfig, prepared_dir: Path) -> tuple[list[Job], list[Finding]]:
    """What is to be made, and what there is to say about it."""
    plan: list[Job | Finding] = []
    settings = (prepared_dir, config.workers, config.progress)
    for part in parts:
        if config.train_ids:
            plan += plan_train_ids(part, *settings)
        if part.name == "source":
            plan += plan_statistics(part, *settings)
        if part.name == "target":
            plan += plan_pairs(part, prepared_dir)
        plan += plan_night_list(part, prepared_dir)
    if config.cache:
        cache = ImageCache(prepared_dir / CACHE_FOLDER, config.data_dir)
        plan += plan_cache(parts, cache, config.workers, config.progress)
    return [p for p in plan if isinstance(p, Job)], [p for p in plan if isinstance(p, Finding)]


def _make(parts: Sequence[Part], config: PrepareConfig, prepared_dir: Path) -> list[Finding]:
    """Make what is to be made; return what is wrong."""
    jobs, findings = _plan(parts, config, prepared_dir)
    if not jobs:
        log.info("nothing to do\n")
        return findings
    with writing_to(prepared_dir), exclusive(prepared_dir):
        jobs, findings = _plan(parts, config, prepared_dir)  # another run may have made it meanwhile
        for job in jobs:
            wrong = job.make()
            findings += wrong or job.told()
            log.info("%s %s -> %s", "incomplete:" if wrong else "made", job.what, job.where)
    log.info("")
    return findings


def _remove(parts: Sequence[Part], cache: ImageCache) -> None:
    if not cache.folder.is_dir():
        log.info("nothing to do: there is no cache in %s", cache.folder)
        return
    with writing_to(cache.folder), exclusive(cache.folder.parent):
        files, freed = remove_cache(parts, cache)
    log.info("removed %d files, %.2f GB, from %s", files, freed / 1e9, cache.folder)


def _tell(findings: Sequence[Finding]) -> None:
    notes = [finding for finding in findings if not finding.stops]
    wrong = [finding for finding in findings if finding.stops]
    for title, listed in (("Good to know", notes), ("To be mended", wrong)):
        if listed:
            log.info("%s\n%s\n", title, describe(listed))
