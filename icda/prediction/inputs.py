"""What there is to segment: pictures found on disk or in a data set, and at which size they enter the network."""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from icda.data.base import Sample, SegmentationDataset
from icda.data.io import IMAGE_ENDINGS, read_image, resize_image
from icda.data.setup import open_part, with_data
from icda.data.stream import normalize
from icda.errors import UserError

PARTS = ("test", "val", "source", "target")
"""Parts of a ``dataset`` group."""
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".mts")
"""What counts as a video in a folder; a file that is named is opened whatever it is called."""
_UNREAD = {"labelled": False, "references": False, "translations": None}  # arguments of data sets


@dataclass(frozen=True)
class Pictures:
    """Image files and the names under which results for them are written.

    Args:
        paths: The files.
        names: One for each, different from all others: a relative path with ``/``, without the ending that the
            result gets.
        left_aside: Videos found beside them, which are not read.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    left_aside: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def result_name(sample: Sample) -> str:
    """Under which name results for a sample of a data set are written: that of its image, in its sub-folders."""
    return (PurePosixPath(sample.key).parent / sample.image.stem).as_posix()


def pictures_of(dataset: SegmentationDataset) -> Pictures:
    """All images of a data set."""
    samples = dataset.samples
    return Pictures(tuple(sample.image for sample in samples), tuple(result_name(sample) for sample in samples))


def find_pictures(path: Path, without: Path | None = None) -> Pictures:
    """One image, or all PNG and JPEG files below a folder, sorted.

    Results are named as the images are, without ending. Where two would share a name (``a.jpg`` and ``a.png``, also
    ``A.png``, which some file systems take for the same), all keep their endings: ``a.jpg``, ``a.png``.

    Args:
        path: An image file or a folder; links are followed, hidden files are not read.
        without: A folder below it that is left out, such as the one that results go to.

    Raises:
        UserError: If there is nothing there, or nothing to read.
    """
    if not path.is_dir():
        return Pictures((path,), (path.stem,))
    found, videos = _walk(path, without)
    if not found:
        what = (
            f"{len(videos)} videos, the first is {videos[0]}; give one of them" if videos else "no PNG or JPEG file"
        )
        raise UserError(f"{path} holds {what}; input= takes an image, a folder of images, or one video")
    relative = [file.relative_to(path).as_posix() for file in found]
    names = [PurePosixPath(name).with_suffix("").as_posix() for name in relative]
    if max(Counter(name.casefold() for name in names).values()) > 1:
        names = relative
    return Pictures(tuple(found), tuple(names), tuple(videos))


def _walk(folder: Path, without: Path | None) -> tuple[list[Path], list[Path]]:
    """Images and videos below a folder, each sorted."""
    seen = {os.path.realpath(without)} if without is not None else set()
    found: list[Path] = []
    videos: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:  # a link that leads back up, or the folder to leave out
            folders.clear()
            continue
        seen.add(place)
        folders.sort()
        visible = [Path(parent) / name for name in names if not name.startswith(".")]
        found += [file for file in visible if file.suffix.lower() in IMAGE_ENDINGS]
        videos += [file for file in visible if file.suffix.lower() in VIDEO_ENDINGS]
    return sorted(found), sorted(videos)


def existing(path: str) -> Path:
    """A file or folder that a person named.

    Raises:
        UserError: If there is none.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(
            f"there is no file or folder {found}; input= takes an image, a folder of images, a video, or one of "
            f"{', '.join(PARTS)}"
        )
    return found


def is_video(path: Path) -> bool:
    """Whether a file is to be opened as a video: one that is neither named like an image nor a still image."""
    if path.is_dir() or path.suffix.lower() in IMAGE_ENDINGS:
        return False
    try:
        with Image.open(path) as picture:
            return bool(getattr(picture, "is_animated", False))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return True


def open_input(
    part: str, training: DictConfig, chosen: DictConfig | None = None, data_dir: str | None = None
) -> SegmentationDataset:
    """The images of a part of a data set; labels, references and translations are not looked for.

    Args:
        part: One of ``PARTS``.
        training: Configuration of a training, not resolved: where ``data_dir`` and ``dataset`` come from.
        chosen: A ``dataset`` group that takes the place of the training's.
        data_dir: Takes the place of the training's.

    Raises:
        UserError: If the data set has no such part, or it cannot be opened.
    """
    composed = with_data(training, chosen, data_dir)
    dataset = composed.dataset
    if dataset.get(part) is None:
        there = [p for p in PARTS if dataset.get(p) is not None]
        raise UserError(
            f"input={part}, but the data set {dataset.get('name')} has no part {part}; it has {', '.join(there)}. Or "
            "give another as dataset=..., or a path"
        )
    if dataset.get("prepare") is not None:
        open_part(OmegaConf.to_container(dataset.prepare, resolve=True))
    takes = inspect.signature(get_object(dataset[part]._target_)).parameters
    changes = {name: value for name, value in _UNREAD.items() if name in takes}
    with open_dict(composed):
        dataset[part].update(changes)
    return open_part(OmegaConf.to_container(dataset[part], resolve=True))


@dataclass(frozen=True)
class InputSize:
    """Size at which pictures enter the network: a fixed one, one of a given area, or their own (neither is given).

    A fixed size is what the images of a data set are trained at; like there, it does not ask for the picture's
    shape. An area keeps the shape, so that things appear as large as in training without being distorted.

    Args:
        fixed: Height and width in pixels.
        area: Pixels, height times width.
    """

    fixed: tuple[int, int] | None = None
    area: int | None = None

    def __str__(self) -> str:
        if self.fixed is not None:
            return f"{self.fixed[0]} x {self.fixed[1]} (height x width)"
        return "their own size" if self.area is None else f"an area of {self.area} pixels"

    def of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width at which a picture of ``size`` (height, width) enters, each 1 or more."""
        if self.fixed is not None:
            return self.fixed
        if self.area is None:
            return size
        scale = math.sqrt(self.area / (size[0] * size[1]))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def resize(self, image: np.ndarray) -> np.ndarray:
        """A picture (H, W, 3) uint8 at the size at which it enters, (h, w, 3) uint8.

        Bilinear, as the images of a data set are resized; where an area asks for less than half the height, the mean
        of the pixels that fall together, since bilinear sampling would skip most of them.
        """
        height, width = size = self.of(image.shape[:2])
        if self.fixed is None and 2 * height < image.shape[0]:
            return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return resize_image(image, size)


def training_size(training: DictConfig) -> InputSize:
    """The area of the validation images that a network was chosen by; pictures' own size if these kept theirs.

    Args:
        training: Configuration of its training.
    """
    size = OmegaConf.select(training, "dataset.val.size")
    return InputSize() if size is None else InputSize(area=size[0] * size[1])


def chosen_size(setting: str | Sequence[int], auto: InputSize) -> InputSize:
    """What the setting ``size`` means: ``original``, ``auto``, or height and width."""
    if setting == "original":
        return InputSize()
    return auto if setting == "auto" else InputSize(fixed=(setting[0], setting[1]))


class PictureReader(Dataset):
    """Pictures as they are and as the network sees them, for ``icda.data.loader.batches``.

    Args:
        paths: The files.
        size: At which they enter the network.
        mean: (3,) of the encoder's normalisation.
        std: (3,) of the encoder's normalisation.
        skip: Whether a file that cannot be read is handed on as its message instead of raising it.
    """

    def __init__(self, paths: Sequence[Path], size: InputSize, mean: Tensor, std: Tensor, skip: bool) -> None:
        self.paths = paths
        self.size = size
        self.mean = mean.cpu().numpy()
        self.std = std.cpu().numpy()
        self.skip = skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A picture, or why it cannot be read.

        Returns:
            ``index``, ``image`` RGB (H, W, 3) uint8 and ``entering`` (3, h, w) float32; or ``index`` and ``error``.
        """
        try:
            image = read_image(self.paths[index])
        except UserError as error:
            if not self.skip:
                raise
            return {"index": index, "error": str(error)}
        entering = normalize(self.size.resize(image), self.mean, self.std)
        return {"index": index, "image": torch.from_numpy(image), "entering": entering}
