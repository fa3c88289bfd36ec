"""Frames that are both trained on and scored: Dark Zurich and ACDC were cut from the same drives.

A frame is known by drive and number (``SegmentationDataset.drive_frame``); whether the pixels are the same is not
looked at. Data sets whose file names tell no drive have no frames here and overlap with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from icda.data.base import SegmentationDataset
from icda.errors import UserError

SETTINGS = ("warn", "drop", "error")
"""What may be done about an overlap."""


@dataclass(frozen=True)
class Overlap:
    """Frames of a training part that are also scored.

    Args:
        trained: Name of the part that is trained on.
        scored: Name of the part that is scored.
        frames: The frames in both, sorted.
        total: Number of frames that are trained on.
    """

    trained: str
    scored: str
    frames: tuple[str, ...]
    total: int

    @property
    def message(self) -> str:
        """What is wrong, in one line."""
        return (
            f"{len(self.frames)} of the {self.total} frames that {self.trained} trains on are also scored in "
            f"{self.scored}, such as {self.frames[0]}"
        )


def frames(dataset: SegmentationDataset) -> frozenset[str]:
    """Drives and frames of a data set, such as ``GOPR0356_frame_000321``."""
    return frozenset(frame for sample in dataset.samples if (frame := dataset.drive_frame(sample)) is not None)


def record_frames(trained: Iterable[SegmentationDataset]) -> dict[str, list[str]]:
    """The frames that a run trains on, in a form to keep in its checkpoint: sorted, by the name of the data set."""
    found: dict[str, frozenset[str]] = {}
    for dataset in trained:
        found[dataset.name] = found.get(dataset.name, frozenset()) | frames(dataset)
    return {name: sorted(own) for name, own in found.items() if own}


def merged_frames(*several: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Several records of :func:`record_frames` as one, as for a run that starts from another's weights."""
    names = sorted({name for one in several for name in one})
    return {name: sorted({frame for one in several for frame in one.get(name, ())}) for name in names}


def find_overlaps(
    trained: Sequence[SegmentationDataset] | Mapping[str, Iterable[str]], scored: Mapping[str, SegmentationDataset]
) -> list[Overlap]:
    """Compare what is trained on with what is scored.

    Args:
        trained: The data sets that are trained on, or their frames as :func:`record_frames` wrote them.
        scored: The data sets that are scored, by the name they are to be called in messages, such as ``val``.

    Returns:
        One entry for each pair of parts that have frames in common.
    """
    recorded = trained if isinstance(trained, Mapping) else record_frames(trained)
    overlaps = []
    for name, own in recorded.items():
        own = frozenset(own)
        for key, dataset in scored.items():
            if common := own & frames(dataset):
                title = key if key == dataset.name else f"{key} ({dataset.name})"
                overlaps.append(Overlap(name, title, tuple(sorted(common)), len(own)))
    return overlaps


def drop_overlaps(datasets: Iterable[SegmentationDataset], overlaps: Iterable[Overlap]) -> dict[str, int]:
    """Leave the frames of overlaps out of data sets: of those that are trained on, or of those that are scored.

    Args:
        datasets: The data sets to change.
        overlaps: What :func:`find_overlaps` found.

    Returns:
        Number of samples left out, by the name of the data set; without data sets that stay whole.

    Raises:
        UserError: If nothing would be left of a data set. None has been changed then.
    """
    shared = frozenset(frame for overlap in overlaps for frame in overlap.frames)
    kept = [(dataset, [s for s in dataset.samples if dataset.drive_frame(s) not in shared]) for dataset in datasets]
    for dataset, samples in kept:
        if not samples:
            raise UserError(
                f"{dataset.name}: all {len(dataset)} images are both trained on and scored, so overlap=drop leaves "
                "none; score or train on another data set, or set overlap=warn"
            )
    dropped: dict[str, int] = {}
    for dataset, samples in kept:
        if count := len(dataset) - len(samples):
            dropped[dataset.name] = dropped.get(dataset.name, 0) + count
            dataset.keep(samples)
    return dropped


def settle_overlaps(
    setting: str,
    trained: Sequence[SegmentationDataset] | Mapping[str, Iterable[str]],
    scored: Mapping[str, SegmentationDataset],
) -> list[str]:
    """Do what the setting ``overlap`` says.

    With ``drop``, data sets that are trained on lose the frames; where only their recorded frames are given
    (training is over), the scored data sets lose them.

    Args:
        setting: ``warn``, ``drop`` or ``error``.
        trained: See :func:`find_overlaps`.
        scored: See :func:`find_overlaps`.

    Returns:
        Lines for the log: one for each overlap, and for each data set that lost frames.

    Raises:
        UserError: If ``setting`` is unknown, it is ``error`` and there is an overlap, or ``drop`` leaves nothing.
    """
    if setting not in SETTINGS:
        raise UserError(f"overlap is {setting!r}; choose one of {', '.join(SETTINGS)}")
    overlaps = find_overlaps(trained, scored)
    if overlaps and setting == "error":
        more = f" (and {len(overlaps) - 1} more such pairs)" if len(overlaps) > 1 else ""
        raise UserError(f"{overlaps[0].message}{more}; set overlap=drop to leave them out, or overlap=warn")
    lines = [overlap.message for overlap in overlaps]
    if overlaps and setting == "drop":
        over = isinstance(trained, Mapping)
        what = "score" if over else "training"
        dropped = drop_overlaps(scored.values() if over else trained, overlaps)
        lines += [f"{count} images of {name} are left out of the {what}" for name, count in dropped.items()]
    return lines
