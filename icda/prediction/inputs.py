"""What there is to segment: pictures found on disk or in a data set, and at which size they enter the network."""

from __future__ import annotations

import inspect
import logging
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

from icda.data.base import OnRead, Sample, SegmentationDataset
from icda.data.files import walk
from icda.data.io import IMAGE_ENDINGS, read_image, resize_image
from icda.data.setup import open_part, with_data
from icda.data.stream import normalize
from icda.errors import UserError
from icda.inference import enough_memory
from icda.prediction.outputs import JPEG_SIDE, RESULTS, counted

log = logging.getLogger(__name__)

PARTS = ("test", "val", "source", "target")
"""Parts of a ``dataset`` group."""
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".mts")
"""What counts as a video in a folder; a file that is named is opened whatever it is called."""
OTHER_ENDINGS = (".webp", ".bmp", ".tif", ".tiff", ".jpe", ".gif", ".avif", ".heic", ".heif")
"""Pictures of other formats, which are not read from a folder."""
_RESULT_MARKS = ("classes.json", "legend.png")  # stand in every folder that predictions were written to
_UNREAD = {"labelled": False, "references": False, "translations": None}  # arguments of data sets


@dataclass(frozen=True)
class Pictures:
    """Image files and the names under which results for them are written.

    Args:
        paths: The files.
        names: One for each, different from all others: a relative path with ``/``, without the ending that the
            result gets.
        videos: Found beside them, not read.
        others: Pictures of other formats found beside them, not read.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    videos: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def left_aside(self) -> str:
        """What was found beside them and is not read, with the mend; empty if nothing."""
        kinds = (
            (self.videos, "videos", "give one as input="),
            (self.others, "pictures of other formats", "convert to PNG or JPEG"),
        )
        return "; ".join(
            f"{len(files)} {unit if len(files) > 1 else unit.replace('s', '', 1)}, the first is {files[0]} ({mend})"
            for files, unit, mend in kinds
            if files
        )


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
    found = _walk(path, without)
    if not found.paths:
        what = found.left_aside or "no PNG or JPEG file"
        raise UserError(f"{path} holds {what}; input= takes an image, a folder of images, or one video")
    relative = [file.relative_to(path).as_posix() for file in found.paths]
    names = [PurePosixPath(name).with_suffix("").as_posix() for name in relative]
    if max(Counter(name.casefold() for name in names).values()) > 1:
        names = relative
    return replace(found, names=tuple(names))


def _walk(folder: Path, without: Path | None) -> Pictures:
    """What is below a folder, results of earlier predictions left out, each kind sorted; without names."""
    own = None if without is None else os.path.realpath(without)
    files: list[Path] = []
    results: list[Path] = []
    for parent, folders, names in walk(folder):
        if own is not None and os.path.realpath(parent) == own:
            folders.clear()
        elif set(_RESULT_MARKS) <= set(names):
            folders.clear()
            results.append(parent)
        else:
            files += [parent / name for name in names]
    if folder in results:
        raise UserError(
            f"{folder} holds the results of an earlier prediction ({', '.join(_RESULT_MARKS)}); give the folder of "
            "the originals as input="
        )
    if results:
        log.info("%s of earlier results left out, the first is %s", counted(len(results), "folders"), results[0])
    kinds = (
        tuple(sorted(file for file in files if file.suffix.lower() in endings))
        for endings in (IMAGE_ENDINGS, VIDEO_ENDINGS, OTHER_ENDINGS)
    )
    found, videos, others = kinds
    return Pictures(found, (), videos, others)


def check_apart(path: Path, folder: Path, written: Sequence[str] = RESULTS) -> None:
    """Refuse an input that results would mix with or replace.

    Args:
        path: The input.
        folder: Where results go.
        written: What is written there.

    Raises:
        UserError: If the input is that folder, or what is written there or lies in it.
    """
    real, base = path.resolve(), folder.resolve()
    inside = real.relative_to(base).parts if real.is_relative_to(base) else None
    if inside is not None and (not inside or inside[0] in written):
        raise UserError(
            f"input={path} is where results would be written; choose another place for these with hydra.run.dir="
        )


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
    """Whether a file is to be opened as a video: one that is neither named like an image nor of an image format.

    Animated pictures and those of several pages count as images; their first picture is read.
    """
    if path.is_dir() or path.suffix.lower() in IMAGE_ENDINGS:
        return False
    try:
        with Image.open(path) as picture:
            return picture.format == "MPEG"  # known to Pillow, but not read by it
    except Image.DecompressionBombError:  # raised for images that are known, but large
        return False
    except (OSError, SyntaxError, ValueError):
        return True


def pictures_in(path: Path) -> int:
    """How many pictures an image file holds, such as pages of a TIFF or frames of a GIF; 1 if that cannot be told."""
    if path.is_dir() or path.suffix.lower() in IMAGE_ENDINGS:
        return 1
    try:
        with Image.open(path) as picture:
            return getattr(picture, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 1


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


def entering(image: np.ndarray, size: InputSize, mean: np.ndarray, std: np.ndarray) -> Tensor:
    """A picture as the network takes it.

    Args:
        image: RGB (H, W, 3) uint8.
        size: At which it enters.
        mean: (3,) of the encoder's normalisation.
        std: (3,) of the encoder's normalisation.

    Returns:
        (3, h, w) float32.

    Raises:
        UserError: If the memory does not suffice.
    """
    with enough_memory(size.of(image.shape[:2])):
        return normalize(size.resize(image), mean, std)


class PictureReader(Dataset):
    """Pictures as they are and as the network sees them, for ``icda.data.loader.batches``.

    Args:
        paths: The files.
        size: At which they enter the network.
        mean: (3,) of the encoder's normalisation.
        std: (3,) of the encoder's normalisation.
        skip: Whether a file that cannot be used is handed on as its message instead of raising it.
        as_jpeg: Whether a picture with more pixels on a side than a JPEG holds is refused.
    """

    def __init__(
        self, paths: Sequence[Path], size: InputSize, mean: Tensor, std: Tensor, skip: bool, as_jpeg: bool = False
    ) -> None:
        self.paths = paths
        self.size = size
        self.mean = mean.cpu().numpy()
        self.std = std.cpu().numpy()
        self.skip = skip
        self.as_jpeg = as_jpeg
        self.on_read: OnRead | None = None  # told of each file before it is read (icda.data.watch)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A picture, or why it cannot be used.

        Returns:
            ``index``, ``image`` RGB (H, W, 3) uint8 and ``entering`` (3, h, w) float32; or ``index`` and ``error``.
        """
        try:
            image = self._read(self.paths[index])
        except UserError as error:
            if not self.skip:
                raise
            return {"index": index, "error": str(error)}
        network = entering(image, self.size, self.mean, self.std)
        return {"index": index, "image": torch.from_numpy(image), "entering": network}

    def _read(self, path: Path) -> np.ndarray:
        if self.on_read is not None:
            self.on_read(path)
        try:
            image = read_image(path)
        except MemoryError as error:
            raise UserError(f"the memory does not suffice to read {path}; give a smaller picture") from error
        height, width = image.shape[:2]
        if self.as_jpeg and max(height, width) > JPEG_SIDE:
            raise UserError(
                f"{path} is {height} x {width} (height x width), of which no overlay can be made: a JPEG holds at "
                f"most {JPEG_SIDE} pixels a side; give overlays=false"
            )
        return image
