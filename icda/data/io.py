"""Reading images and label maps from disk: what is returned is whole and valid, or a ``UserError`` says why not.

Pillow reads everything. OpenCV is a little faster, but it returns half-grey images for truncated JPEG files.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps

from icda.data.classes import ClassSet
from icda.errors import UserError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg")

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH = 24  # position of the bit depth in a PNG file
_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap height and width
_IMAGE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_WIDE_LABEL_MODES = ("I", "I;16", "I;16L", "I;16B")


def read_image(path: str | Path) -> np.ndarray:
    """Read a photograph.

    Grey images are spread over three channels, transparency is dropped. The EXIF orientation of a JPEG is applied; a
    PNG is never turned, since cameras write none and label maps do not say how theirs were.

    Args:
        path: PNG or JPEG file, 8 bit per channel.

    Returns:
        RGB image, (H, W, 3) uint8, writable.

    Raises:
        UserError: If the file is missing, empty, truncated, not an image, or has more than 8 bit per channel.
    """
    path = Path(path)
    picture, bits = _load(path)
    if bits > 8 or picture.mode not in _IMAGE_MODES:
        raise UserError(
            f"{path} has more than 8 bit per channel (mode {picture.mode}); images must be 8-bit PNG or JPEG: "
            "convert it to 8 bit"
        )
    if picture.format != "PNG":
        picture = ImageOps.exif_transpose(picture)
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_label(path: str | Path, classes: ClassSet, mapping: np.ndarray | None = None) -> np.ndarray:
    """Read a label map as train ids.

    Args:
        path: One-channel PNG file. Of a palette file the indices are used, never the colours.
        classes: The label space that the train ids must belong to.
        mapping: Train id of every id in the file, (256,) uint8; None if the file holds train ids. An id mapped
            to something that is neither a class nor the ignore index is refused.

    Returns:
        Train ids, (H, W) uint8: 0 .. len(classes) - 1 and ``classes.ignore_index``.

    Raises:
        UserError: If the file is missing, empty, truncated, not an image, has several channels, or holds an id
            that is not allowed; the message names the file and the ids.
    """
    path = Path(path)
    picture, _ = _load(path)
    if picture.mode == "1":  # how PNG optimisers store a map of nothing but 0 and 255
        picture = picture.convert("L")
    if picture.mode not in ("L", "P", *_WIDE_LABEL_MODES):
        raise UserError(
            f"{path} is no label map: mode {picture.mode}, expected one channel of ids (8-bit grey or palette). "
            "A colour picture of the labels cannot be used; take the file that holds the ids"
        )
    ids = np.array(picture)
    if ids.dtype != np.uint8:
        _refuse_ids(path, ids, (ids < 0) | (ids > np.iinfo(np.uint8).max), classes, mapping)
        ids = ids.astype(np.uint8)
    label = ids if mapping is None else cv2.LUT(ids, mapping)
    _refuse_ids(path, ids, (label >= len(classes)) & (label != classes.ignore_index), classes, mapping)
    return label


def read_invalid(path: str | Path) -> np.ndarray:
    """Read a mask of pixels that people could not make out (``_gt_invIds.png`` or ``_gt_invGray.png``).

    Args:
        path: One-channel PNG file: 0 where valid, 1 or 255 where invalid. Of a palette file the indices are used.

    Returns:
        (H, W) bool; True where invalid.

    Raises:
        UserError: If the file is missing, truncated, not an image, has several channels, or holds other values.
    """
    path = Path(path)
    picture, _ = _load(path)
    values = np.array(picture)
    if picture.mode not in ("1", "L", "P") or not np.isin(np.unique(values), (0, 1, 255)).all():
        found = ", ".join(map(str, np.unique(values)[:6].tolist())) if values.ndim == 2 else "several channels"
        raise UserError(
            f"{path} is no mask of invalid pixels: mode {picture.mode} with {found}; expected one channel of 0 "
            "(valid) and 1 or 255 (invalid), as in *_gt_invIds.png"
        )
    return values != 0


def image_size(path: str | Path) -> tuple[int, int]:
    """Size that :func:`read_image` would return, from the file's header alone (well under a millisecond).

    Args:
        path: PNG or JPEG file.

    Returns:
        Height and width in pixels.

    Raises:
        UserError: If the file is missing or not an image.
    """
    path = Path(path)
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            orientation = None if picture.format == "PNG" else picture.getexif().get(_EXIF_ORIENTATION)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    return (width, height) if orientation in _EXIF_QUARTER_TURNS else (height, width)


def resize_image(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Resize an image bilinearly.

    Args:
        image: (H, W, 3) uint8.
        size: Height and width wanted; None leaves the image as it is.

    Returns:
        (height, width, 3) uint8.
    """
    if size is None or image.shape[:2] == tuple(size):
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resize_label(label: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Resize a label map by nearest neighbour, pixel centres as in :func:`resize_image`.

    Args:
        label: Train ids, (H, W) uint8.
        size: Height and width wanted; None leaves the label as it is.

    Returns:
        (height, width) uint8.
    """
    if size is None or label.shape == tuple(size):
        return label
    # INTER_NEAREST reads the upper left corner of a pixel, which moves labels against bilinear images.
    return cv2.resize(label, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT)


def _load(path: Path) -> tuple[Image.Image, int]:
    """The decoded picture of a whole file and its bits per channel as far as Pillow hides them (PNG)."""
    try:
        data = path.read_bytes()
        if not data:
            raise UserError(f"{path} is empty (0 bytes); copy or unzip it again")
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise _unreadable(path, error) from error
    is_png = data.startswith(_PNG_START)
    if is_png and (fault := _png_fault(data)):
        raise _unreadable(path, ValueError(fault))
    return picture, data[_PNG_BIT_DEPTH] if is_png else 8


def _png_fault(data: bytes) -> str | None:
    """What is wrong with a PNG file that Pillow has decoded; it compares no checksums of the pixels' own chunks."""
    place = len(_PNG_START)
    while place + 12 <= len(data):  # length, kind, content, checksum
        length = int.from_bytes(data[place : place + 4], "big")
        end = place + 8 + length
        if zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return "a checksum does not fit"
        if data[place + 4 : place + 8] == b"IEND":
            return None
        place = end + 4
    return "image file is truncated, its end is missing"


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} does not exist; it may have been moved since the start, or be a broken link")
    if isinstance(error, PermissionError | IsADirectoryError):
        return UserError(f"{path} cannot be opened: {error.strerror}; check what it is and its permissions")
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * Image.MAX_IMAGE_PIXELS
        return UserError(f"{path} has more than {most} pixels, the most that are read; make it smaller")
    reason = "not a known image format" if isinstance(error, Image.UnidentifiedImageError) else error
    return UserError(f"{path} cannot be read: {reason}; the file is damaged or truncated: copy or unzip it again")


def _refuse_ids(path: Path, ids: np.ndarray, bad: np.ndarray, classes: ClassSet, mapping: np.ndarray | None) -> None:
    """Raise if any id is bad. All arrays (H, W); ids as they are in the file, bad bool."""
    if not bad.any():
        return
    wrong = np.unique(ids[bad])
    shown = ", ".join(map(str, wrong[:10].tolist())) + (", ..." if wrong.size > 10 else "")
    if mapping is None:
        allowed = f"the train ids 0 to {len(classes) - 1} and {classes.ignore_index} (ignore)"
    else:
        known = (mapping < len(classes)) | (mapping == classes.ignore_index)
        allowed = f"the ids {_ranges(np.flatnonzero(known))}"
    raise UserError(
        f"{path} holds ids that do not belong to the {classes.name} classes: {shown} "
        f"({int(bad.sum())} pixels); expected {allowed}. Is this the right file for this data set?"
    )


def _ranges(ids: np.ndarray) -> str:
    """Sorted integers as text: [0, 1, 2, 255] -> "0 to 2, 255"."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
    return ", ".join(f"{run[0]} to {run[-1]}" if run.size > 1 else f"{run[0]}" for run in runs)
