"""What CEM makes of a data set's images, to choose its settings by eye: what ``scripts/show_cem.py`` does.

The row of a seed shows one image: as it is, in the light of each kind of illumination, warped by each warp, and as
training would see it. All of it follows from the seed and the data set: ``seed=N`` shows the row of N as the first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf

from icda.config import CemConfig
from icda.data.base import SegmentationDataset
from icda.data.setup import attach_cache, cem_pipeline, open_part
from icda.errors import UserError
from icda.explanation.page import STYLE, class_list, facts, figure
from icda.explanation.settings import ShowCemConfig, validate_show_cem
from icda.report.html import ENCODING, document, png, text
from icda.training.durable import write_whole
from icda.transforms import ILLUMINATIONS, WARPS, reseed
from icda.viz import caption, contact_sheet, overlay, resized

log = logging.getLogger(__name__)

PAGE, SHEET = "index.html", "cem.png"
SOURCE, ALL = "source", "all of it"
_HEADINGS = {"none": "jitter and blur alone"}
_PLAIN = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])  # a normalisation that only scales to 0..1
_LEVELS = np.iinfo(np.uint8).max


@dataclass(frozen=True)
class Tile:
    """A picture of the sheet: RGB (H, W, 3) uint8 and its labels (H, W) uint8."""

    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class CemSheet:
    """What is shown.

    Attributes:
        rows: Tiles by the name of their column, one mapping for each seed.
        keys: The image of each row, as the data set calls it.
        left_out: Why a kind of illumination is not shown, by its name.
    """

    rows: dict[int, dict[str, Tile]]
    keys: dict[int, str]
    left_out: dict[str, str]


def show_cem(cfg: DictConfig, folder: Path) -> CemSheet:
    """Write ``cem.png`` and ``index.html``.

    Args:
        cfg: Composed from ``conf/show_cem.yaml``.
        folder: The run's folder, where they go.

    Returns:
        What was shown.

    Raises:
        UserError: If the source images or the settings cannot be used.
    """
    config = validate_show_cem(cfg)
    dataset = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)).dataset
    source, target, left_out = _open(config, dataset)
    seeds = range(config.seed, config.seed + config.count)
    drawn = {seed: _row(config.cem, source, target, seed, left_out) for seed in seeds}
    sheet = CemSheet({s: row for s, (_, row) in drawn.items()}, {s: key for s, (key, _) in drawn.items()}, left_out)
    for kind, reason in left_out.items():
        log.info("%s is not shown: %s", kind, reason)
    pictures = {seed: _drawn(row, seed, source, config) for seed, row in sheet.rows.items()}
    picture = png(np.vstack(list(pictures.values())))
    write_whole(folder / SHEET, lambda file: file.write(picture))
    page = _page(config, dataset.name, source, sheet, pictures)
    write_whole(folder / PAGE, lambda file: file.write(page.encode(ENCODING)))
    log.info("%s and %s written to %s", SHEET, PAGE, folder)
    return sheet


def _open(
    config: ShowCemConfig, dataset: DictConfig
) -> tuple[SegmentationDataset, SegmentationDataset | None, dict[str, str]]:
    """The labelled images, the night images if they are there, and what cannot be shown."""
    if dataset.get("source") is None:
        raise UserError(f"dataset={dataset.name} has no labelled day images (dataset.source), it is only for scoring")
    if dataset.get("prepare") is not None:
        open_part(dataset.prepare)
    left_out: dict[str, str] = {}
    source, target = None, None
    if not dataset.source.get("translations"):
        left_out["translated"] = "dataset.source.translations names no folder; scripts/translate.py makes one"
    else:
        try:
            source = open_part(dataset.source)
        except UserError as error:
            left_out["translated"] = str(error)
    if source is None:
        source = open_part(dataset.source, **({"translations": None} if "translations" in dataset.source else {}))
    if dataset.get("target") is None:
        left_out["style"] = "dataset.target is null, and it takes its light from night images"
    else:
        try:
            target = open_part(dataset.target, **({"references": False} if "references" in dataset.target else {}))
        except UserError as error:
            left_out["style"] = str(error)
    for part in filter(None, (source, target)):
        attach_cache(part, config.prepared_dir, config.data_dir)
    return source, target, left_out


def _row(
    cem: CemConfig,
    source: SegmentationDataset,
    target: SegmentationDataset | None,
    seed: int,
    left_out: Mapping[str, str],
) -> tuple[str, dict[str, Tile]]:
    """The image that a seed draws, as the data set calls it, and its tiles by the name of their column."""
    generator = np.random.default_rng(seed)
    index = int(generator.integers(len(source)))
    image, label = source.image(index), source.label(index)
    aids = {}
    if target is not None:
        aids["style"] = {"style_image": target.image(int(generator.integers(len(target))))}
    if "translated" not in left_out:
        aids["translated"] = {"translated": source.translation(index)}
    ignored = source.classes.ignore_index
    tiles = {SOURCE: Tile(image, label)}
    for name, part in variants(cem).items():
        if part.illumination not in left_out:
            pipeline = cem_pipeline(part, *_PLAIN, ignored)
            reseed(pipeline, seed)
            made = pipeline(image=image, mask=label, **aids.get(part.illumination, {}))
            tiles[name] = Tile(np.rint(made["image"] * _LEVELS).astype(np.uint8), made["mask"])
    return source.samples[index].key, tiles


def variants(cem: CemConfig) -> dict[str, CemConfig]:
    """The columns beside the plain image, and what CEM does there.

    Args:
        cem: The ``cem`` group; its settings hold for each column.

    Returns:
        Each kind of illumination, with jitter and blur but no warp ("none" has these alone); each warp, without them;
        and the group as it is.
    """
    still = replace(cem, illumination="none", jitter=0.0, blur_probability=0.0)
    return {
        **{kind: replace(cem, illumination=kind, spatial=False) for kind in ILLUMINATIONS},
        **{warp: replace(still, spatial=True, warps=[warp]) for warp in WARPS},
        ALL: cem,
    }


def _drawn(row: Mapping[str, Tile], seed: int, source: SegmentationDataset, config: ShowCemConfig) -> np.ndarray:
    """A row of the sheet: pictures, and below them their labels over them; the seed stands on each."""
    height, width = row[SOURCE].image.shape[:2]
    tile = max(1, round(height * config.tile / width)), config.tile
    columns = {}
    for name, made in row.items():
        labelled = overlay(made.image, made.label, source.classes, config.opacity)
        pair = (resized(picture, tile) for picture in (made.image, labelled))
        columns[_HEADINGS.get(name, name)] = [caption(picture, f"seed {seed}") for picture in pair]
    return contact_sheet(columns, tile)


def _page(
    config: ShowCemConfig,
    dataset: str,
    source: SegmentationDataset,
    sheet: CemSheet,
    pictures: Mapping[int, np.ndarray],
) -> str:
    cem = config.cem
    settings = {
        "Data set": f"{source.name}, {len(source)} images",
        "cem.illumination": cem.illumination,
        "cem.spatial": str(cem.spatial).lower(),
        "cem.warps": ", ".join(cem.warps),
        "cem.interpolation": cem.interpolation,
        "cem.jitter": cem.jitter,
        "cem.blur_probability": cem.blur_probability,
        "cem.style_strength": f"{cem.style_strength[0]:g} to {cem.style_strength[1]:g}",
    }
    missing = "".join(f"<p>Not shown: <b>{text(kind)}</b>. {text(why)}.</p>" for kind, why in sheet.left_out.items())
    rows = "".join(
        f'<section><h2 id="seed{seed}">Seed {seed}</h2>'
        + figure(
            pictures[seed],
            f"CEM's pictures of {sheet.keys[seed]} for seed {seed}, with their labels below",
            f"{sheet.keys[seed]}. Again, as the first row: dataset={dataset} seed={seed}",
        )
        + "</section>"
        for seed in sheet.rows
    )
    body = (
        f"<header><h1>What CEM makes of {text(source.name)}</h1>{facts(settings)}"
        "<p>Each kind of illumination is shown with jitter and blur but without a warp, each warp without them, and "
        "at the right is what training would see. What a warp brings in from outside, black here and the mean colour "
        "in training, has no label.</p>"
        f"{missing}{class_list(source.classes)}</header><main>{rows}</main>"
    )
    return document("What CEM makes of a data set", body, styles=[STYLE])
