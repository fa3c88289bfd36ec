"""ACDC as unzipped from its official packages: fog, night, rain and snow, with references in normal conditions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from icda.data.base import Count, Sample, check_split
from icda.data.cityscapes import CityscapesLabels
from icda.data.classes import CITYSCAPES
from icda.data.darkzurich import DRIVE_ENDINGS, INVALID_ENDING, expected_invalid, list_invalid
from icda.data.files import list_files
from icda.data.io import IMAGE_ENDINGS
from icda.data.pairs import apply_unpaired, check_unpaired, describe_unpaired
from icda.errors import UserError

CONDITIONS = ("fog", "night", "rain", "snow")
REFERENCE_ENDINGS = tuple(f"_rgb_ref_anon{ending}" for ending in IMAGE_ENDINGS)


class ACDC(CityscapesLabels):
    """Images of ACDC in the chosen conditions, each with the image of the same place on a clear day.

    Also reads the flattened copy that DAFormer uses (``rgb_anon/<split>/*.png``), in which the conditions cannot be
    told apart. Labels of references, which newer packages hold, are left aside.

    Args:
        root: Folder that holds ``rgb_anon`` and ``gt`` (or the folders named after their packages).
        split: ``train``, ``val`` or ``test``. Labels of the test split are not public.
        conditions: Any of ``fog``, ``night``, ``rain``, ``snow``; None takes all.
        size: Height and width that images and labels are resized to; None keeps 1080 x 1920.
        references: Whether references are looked for; False also serves users without them.
        unpaired: What to do with an image that has no reference: ``drop`` leaves it out, ``keep`` keeps it without
            one, ``error`` stops.
        labelled: Whether labels and invalid masks are looked for and read (not in the test split).
        translations: Folder of night translations (see ``SegmentationDataset``); None if there are none.
        check: Whether an incomplete tree is refused (see ``SegmentationDataset``).

    Attributes:
        unpaired: Number of images without a reference, left out or kept.
        pairing: One line that says where the references come from.

    Raises:
        UserError: If a condition is unknown or cannot be told apart, or a folder, all images, a label or a
            translation is missing.
    """

    TREE = (
        "rgb_anon/<condition>/<split>/<sequence>/*_rgb_anon.png, rgb_anon/<condition>/<split>_ref/<sequence>/"
        "*_rgb_ref_anon.png and gt/<condition>/<split>/<sequence>/*_gt_labelTrainIds.png"
    )
    PACKAGES = ("ACDC", "acdc", "rgb_anon_trainvaltest", "gt_trainval")
    HAS_DRIVE_FRAMES = True
    SPLITS = ("train", "val", "test")
    PUBLISHED: ClassVar[dict[str, dict[str, int]]] = {
        "train": {"fog": 400, "night": 400, "rain": 400, "snow": 400},
        "val": {"fog": 100, "night": 106, "rain": 100, "snow": 100},
        "test": {"fog": 500, "night": 500, "rain": 500, "snow": 500},
    }
    """Images by split and condition (arXiv 2104.13395); each has a reference."""

    def __init__(
        self,
        root: str,
        split: str,
        conditions: Sequence[str] | None = CONDITIONS,
        size: Sequence[int] | None = None,
        references: bool = True,
        unpaired: str = "drop",
        labelled: bool = True,
        translations: str | None = None,
        check: bool = True,
    ) -> None:
        self.conditions = _conditions(conditions)
        chosen = "" if self.conditions == CONDITIONS else f" {'+'.join(self.conditions)}"
        name = f"ACDC{chosen} {split}"
        check_split("ACDC", split, self.SPLITS)
        check_unpaired(name, unpaired)
        self.split = split
        self.flat = self._is_flat(name, root)
        hint = "Where a condition is missing, leave it out of conditions."
        images = self._list(name, root, "rgb_anon", split, lambda folder: list_files(folder, DRIVE_ENDINGS), hint)
        found, reference, expected = images, {}, {}
        self.pairing, self.unpaired = "no references", 0
        if references and images:
            hint = "Or set references=false if no references are needed."
            reference = self._list(
                name, root, "rgb_anon", f"{split}_ref", lambda folder: list_files(folder, REFERENCE_ENDINGS), hint
            )
            self.pairing = f"file names in {split}_ref"
            # Without the check, what unpaired=error would refuse is found in ``missing``.
            lenient = "keep" if unpaired == "error" and not check else unpaired
            self.pairing += describe_unpaired(images, reference, unpaired)
            images, self.unpaired = apply_unpaired(name, images, reference, lenient)
            if unpaired == "error":
                expected["reference"] = self._pattern(root, "rgb_anon", f"{split}_ref", REFERENCE_ENDINGS[0])
        labels, invalid = {}, {}
        if labelled and split != "test":
            hint = "Or set labelled=false if no labels are needed."
            labels = self._list(name, root, "gt", split, self._list_labels, hint)
            invalid = self._list(name, root, "gt", split, list_invalid, hint)
            expected["label"] = self._pattern(root, "gt", split, self.TRAIN_IDS_ENDINGS[0])
            expected |= expected_invalid(self._pattern(root, "gt", split, INVALID_ENDING), images, invalid)
        super().__init__(
            name,
            CITYSCAPES,
            root,
            [
                Sample(key, path, labels.get(key), reference.get(key), invalid.get(key))
                for key, path in images.items()
            ],
            size,
            expected=expected,
            strays=[p for kind in (labels, invalid, reference) for key, p in kind.items() if key not in found],
            translations=translations,
            check=check,
        )

    def published(self) -> dict[str, int]:
        """Number of images by condition; of a flattened copy, of all together."""
        published = {condition: self.PUBLISHED[self.split][condition] for condition in self.conditions}
        return {"": sum(published.values())} if self.flat else published

    def group_of(self, sample: Sample) -> str:
        """The condition of a sample; empty in a flattened copy."""
        return "" if self.flat else sample.key.split("/", 1)[0]

    def counts(self) -> list[Count]:
        """How much there is of everything, references included where they are looked for."""
        counts = super().counts()
        references = sum(sample.reference is not None for sample in self.samples)
        if "reference" not in self.expected and (references or self.unpaired):
            counts.append(Count("references", references, sum(self.published().values())))
        if self.unpaired:
            counts.append(Count("images without a reference", self.unpaired))
        return counts

    def _is_flat(self, name: str, root: str) -> bool:
        """Whether this is a flattened copy: no condition has a folder, but the split has."""
        bases = [Path(root).expanduser() / package / "rgb_anon" for package in ("", *self.PACKAGES)]
        split = self.split
        if any((base / condition / split).is_dir() for base in bases for condition in CONDITIONS):
            return False
        flat = next((base / split for base in bases if (base / split).is_dir()), None)
        if flat is not None and self.conditions != CONDITIONS:
            raise UserError(
                f"{name}: {flat} is a flattened copy, in which conditions cannot be told apart; give "
                f"conditions=[{','.join(CONDITIONS)}], or unzip rgb_anon/<condition>/{split}"
            )
        return flat is not None

    def _pattern(self, root: str, tree: str, split: str, ending: str) -> str:
        """Where a companion is expected."""
        return f"{root}/{tree}/{split}/*{ending}" if self.flat else f"{root}/{tree}/<condition>/{split}/*/*{ending}"

    def _list(
        self, name: str, root: str, tree: str, split: str, listed: Callable[[Path], Mapping[str, Path]], hint: str
    ) -> dict[str, Path]:
        """Files of a split in all chosen conditions, by ``<condition>/<sequence>/<frame>`` or, flat, ``<frame>``."""
        found: dict[str, Path] = {}
        if not self.flat:
            for condition in self.conditions:
                files = listed(self._find(name, root, f"{tree}/{condition}/{split}", hint))
                found.update((f"{condition}/{key}", path) for key, path in sorted(files.items()))
            return found
        for key, path in sorted(listed(self._find(name, root, f"{tree}/{split}", hint)).items()):
            if other := found.get(frame := key.rsplit("/", 1)[-1]):
                raise UserError(f"{name}: two files for one frame: {other} and {path}; remove one of them")
            found[frame] = path
        return dict(sorted(found.items()))


def _conditions(conditions: Sequence[str] | None) -> tuple[str, ...]:
    """The chosen conditions in the order of ``CONDITIONS``."""
    if conditions is None:
        return CONDITIONS
    if isinstance(conditions, str):
        raise UserError(f"ACDC: conditions is {conditions!r}, expected a list, such as [{conditions}]")
    unknown = [str(condition) for condition in conditions if condition not in CONDITIONS]
    if unknown or not len(conditions):
        raise UserError(f"ACDC: no condition {', '.join(unknown) or 'chosen'}; choose any of {', '.join(CONDITIONS)}")
    return tuple(condition for condition in CONDITIONS if condition in conditions)
