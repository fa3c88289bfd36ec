"""From the ``dataset`` and ``cem`` groups of a configuration to open data sets and the training stream."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from icda.config import CemConfig, TrainConfig
from icda.data.base import SegmentationDataset
from icda.data.cache import ImageCache
from icda.data.overlap import record_frames, settle_overlaps
from icda.data.rare_class import RareClassSampler, class_statistics, find_statistics
from icda.errors import UserError
from icda.weights.foreign import plain

if TYPE_CHECKING:
    import albumentations as A

    from icda.data.stream import PairStream

log = logging.getLogger(__name__)

CACHE_FOLDER = "cache"
"""Name of the cache's folder in ``prepared_dir``."""

OWN_PARTS = frozenset(
    {"icda.data.demo.make_demo", "icda.data.demo.make_demo_with_night_labels"}
    | {f"icda.data.{name}" for name in ("ACDC", "BDD100KNight", "CamVid", "Cityscapes", "DarkZurich", "Folder")}
    | {f"icda.data.{name}" for name in ("NightCity", "NighttimeDriving")}
)
"""What a configuration out of a file may name as ``_target_``; the command line and ``conf/`` may name anything."""


def open_part(node: Any, **changes: Any) -> Any:
    """Make what a configuration node with ``_target_`` describes.

    Args:
        node: Constructor arguments, resolved.
        **changes: Arguments that replace the node's.

    Raises:
        UserError: If an argument is unknown or refused.
    """
    node = OmegaConf.create(node)
    try:
        return instantiate(node, **changes, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, TypeError):
            raise UserError(f"{node.get('_target_')}: {cause}; see conf/dataset for its settings") from None
        raise


def with_data(
    training: DictConfig, chosen: DictConfig | None, data_dir: str | None = None, prepared_dir: str | None = None
) -> DictConfig:
    """The configuration of a training with other data, for scoring and predicting; interpolations stay as they are.

    Args:
        training: What a checkpoint holds; one of an earlier version may lack ``prepared_dir``.
        chosen: A ``dataset`` group that takes the place of the training's; None leaves that.
        data_dir: Takes the place of the training's; ``prepared_dir`` then follows, unless it is given.
        prepared_dir: Takes the place of the training's.

    Raises:
        UserError: If neither names a data set, as with a published checkpoint; or the training's, which came in a
            file, is made by anything but icda's own data sets.
    """
    if chosen is None and OmegaConf.select(training, "dataset.name") is None:
        raise UserError(
            "a published checkpoint does not name the data set it was trained with; give one, such as "
            "dataset=darkzurich data_dir=FOLDER"
        )
    if chosen is None:
        _check_parts(OmegaConf.to_container(training.dataset, resolve=False))
    composed = training.copy()
    with open_dict(composed):
        if data_dir is not None:
            composed.data_dir = data_dir
        if prepared_dir is not None:
            composed.prepared_dir = prepared_dir
        elif data_dir is not None or "prepared_dir" not in composed:
            composed.prepared_dir = "${data_dir}/icda_prepared"
        if chosen is not None:
            composed.dataset = OmegaConf.to_container(chosen, resolve=False)
    return composed


def _check_parts(node: Any) -> None:
    """Refuse a data set out of a file that names code of others: whoever wrote the file could name any code."""
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and target not in OWN_PARTS:
            raise UserError(
                f"the checkpoint's data set is made by {plain(target, 80)}, which is none of icda's, and a file may "
                "not choose what code is run; if you trust it, give its data set yourself, as dataset=NAME"
            )
        for value in node.values():
            _check_parts(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            _check_parts(value)


def attach_cache(dataset: SegmentationDataset, prepared_dir: str, data_dir: str) -> SegmentationDataset:
    """The data set, reading what ``scripts/prepare.py cache=true`` has stored at its size, where there is any.

    Args:
        dataset: Any data set.
        prepared_dir: Folder that ``prepare.py`` writes to.
        data_dir: Folder that holds the data sets' folders.
    """
    folder = Path(prepared_dir).expanduser() / CACHE_FOLDER
    if folder.is_dir():
        dataset.cache = ImageCache(folder, data_dir)
    return dataset


@dataclass(frozen=True)
class OpenDatasets:
    """The data sets of a run; ``target`` is None where nothing needs it, ``last`` holds those of ``score_last``."""

    source: SegmentationDataset
    target: SegmentationDataset | None
    val: SegmentationDataset
    last: Mapping[str, SegmentationDataset] = field(default_factory=dict)

    @property
    def trained(self) -> list[SegmentationDataset]:
        """Those whose images are trained on."""
        return [part for part in (self.source, self.target) if part is not None]

    @property
    def trained_frames(self) -> dict[str, list[str]]:
        """Drive frames that are trained on, by the name of the data set (``icda.data.overlap``)."""
        return record_frames(self.trained)


def open_datasets(config: TrainConfig) -> OpenDatasets:
    """Open all data sets of a run, so that what is wrong with them is said before anything else is done.

    Raises:
        UserError: If one is missing, incomplete or empty, or their classes differ.
    """
    dataset, loss, cem = config.dataset, config.loss, config.cem
    held_out = _held_out(config)
    if dataset.prepare is not None:
        open_part(dataset.prepare)
    translated = loss.needs_enhanced and cem.illumination == "translated"
    if translated and not dataset.source.get("translations"):
        raise UserError(
            "cem.illumination=translated reads day-to-night translations, but dataset.source.translations names no "
            "folder; give +dataset.source.translations=/path/CycleGANCityscapes, or choose cem=style"
        )
    source = open_part(dataset.source, **_unread(dataset.source, translations=translated))
    styled = loss.needs_enhanced and cem.illumination == "style"
    target = None
    if loss.needs_target or styled:
        if dataset.target is None:
            wanted = "the loss learns from night images" if loss.needs_target else "cem=style copies night images"
            raise UserError(f"dataset.target is null, but {wanted}; give one, or loss=source_only, or cem=relight")
        paired = loss.needs_reference and dataset.reference == "pairs"
        target = open_part(dataset.target, **_unread(dataset.target, references=paired))
    val = open_part(dataset.val)
    last = {name: open_part(node) for name, node in held_out.items()}
    for other in filter(None, (target, val, *last.values())):
        if other.classes != source.classes:
            raise UserError(
                f"{source.name} has the classes of {source.classes.name}, {other.name} those of "
                f"{other.classes.name}; source, target, val and score_last need the same"
            )
    datasets = OpenDatasets(source, target, val, last)
    for line in settle_overlaps(config.overlap, datasets.trained, {"val": val, **last}):
        log.warning("%s", line)
    for part in (*datasets.trained, val, *last.values()):
        attach_cache(part, config.prepared_dir, config.data_dir)
    return datasets


def _held_out(config: TrainConfig) -> dict[str, Any]:
    """The nodes of the sets that ``score_last`` names, by name.

    Raises:
        UserError: If a name is unknown.
    """
    known = config.dataset.score_also
    for name in config.score_last:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "it names no set"
            raise UserError(
                f"score_last: dataset.score_also of {config.dataset.name} has no set {name}; {there}; "
                "give some of these, or score_last=[]"
            )
    return {name: known[name] for name in config.score_last}


def _unread(node: Any, **read: bool) -> dict[str, bool | None]:
    """Arguments that keep a data set from asking for files that nothing will read."""
    off = {"translations": None, "references": False}
    return {name: off[name] for name, wanted in read.items() if not wanted and name in node}


def training_stream(
    config: TrainConfig, datasets: OpenDatasets, mean: list[float], std: list[float], world_size: int = 1
) -> PairStream:
    """The samples of a run.

    Args:
        config: The run's configuration.
        datasets: Its open data sets.
        mean: (3,) of the encoder's normalisation.
        std: (3,) of the encoder's normalisation.
        world_size: Processes that train together and share the samples.
    """
    # Imported here, for these take seconds, and most who open data sets train on none.
    from icda.data.stream import PairStream

    loss, sampling, ignore_index = config.loss, config.dataset.sampling, datasets.source.classes.ignore_index
    rare_classes = None
    if sampling.rare_classes:
        source = datasets.source
        # Statistics on disk count all images; they do not fit a data set that lost some to overlap=drop.
        statistics = None if source.left_out else find_statistics(source, config.prepared_dir)
        if statistics is None:
            log.info("counting the classes of %s; scripts/prepare.py does it once and for all", source.name)
            statistics = class_statistics(source, workers=config.workers, progress=config.progress)
        rare_classes = RareClassSampler(
            statistics, len(source.classes), temperature=sampling.temperature, min_pixels=sampling.min_pixels
        )
    lifted = loss.needs_reference and _some_are_made(config.dataset.reference, datasets.target)
    return PairStream(
        datasets.source,
        datasets.target,
        sampling,
        mean,
        std,
        length=config.schedule.max_steps * config.schedule.batch_size * config.schedule.accumulate * world_size,
        seed=config.seed,
        cem=cem_pipeline(config.cem, mean, std, ignore_index) if loss.needs_enhanced else None,
        lift=_lift() if lifted else None,
        with_reference=loss.needs_reference,
        rare_classes=rare_classes,
    )


def _lift() -> A.Compose:
    """What makes a day reference from a night image."""
    import albumentations as A

    from icda.transforms import LiftIllumination

    return A.Compose([LiftIllumination(p=1.0)])


def _some_are_made(reference: str, target: SegmentationDataset) -> bool:
    """Whether day references are made from night images: from all of them, or from those kept without one."""
    lacking = sum(sample.reference is None for sample in target.samples)
    kept = getattr(target, "unpaired", 0)  # with unpaired=keep, images without a reference are meant
    if reference == "pairs" and lacking == len(target) > kept:
        raise UserError(
            f"dataset.reference=pairs, but no image of {target.name} has a day reference; give "
            "dataset.reference=enhanced to have them made from the night images"
        )
    return lacking > 0


def cem_pipeline(cem: CemConfig, mean: list[float], std: list[float], ignore_index: int) -> A.Compose:
    """CEM as the ``cem`` group describes it (method section 2).

    Args:
        cem: The group.
        mean: (3,) of the encoder's normalisation.
        std: (3,) of the encoder's normalisation.
        ignore_index: Label of pixels that a warp brings in from outside.
    """
    from icda.transforms import build_cem

    return build_cem(
        cem.illumination,
        mean,
        std,
        fill_mask=ignore_index,
        spatial={"warps": cem.warps, "interpolation": cem.interpolation} if cem.spatial else False,
        illumination_options={"strength": cem.style_strength} if cem.illumination == "style" else None,
        brightness=cem.jitter,
        contrast=cem.jitter,
        saturation=cem.jitter,
        blur_p=cem.blur_probability,
    )
