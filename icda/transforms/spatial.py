"""CEM's spatial part: one random warp of image and label together (method section 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import albumentations as A
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets

from icda.errors import UserError
from icda.transforms import warps as geometry
from icda.transforms.checks import check_number, check_rgb
from icda.transforms.names import WARPS

INTERPOLATIONS = ("nearest", "bilinear")

_DRAWS = {
    "homography": geometry.HOMOGRAPHY_DRAWS,
    "tps": geometry.TPS_DRAWS,
    "affine_tps": geometry.AFFINE_TPS_DRAWS,
}
# cv2.remap takes these types, reads indices of 16 bits, and fills at most four channels a call.
_REMAP_TYPES = (np.uint8, np.uint16, np.int16, np.float32, np.float64)
_REMAP_CHANNELS = 4
_PACKED = (3, 4)  # channels of 8 bits that make one number of 32
_LARGEST_SIDE = np.iinfo(np.int16).max - 1
# Images of one run have one size, or two where training and validation differ.
_CACHED_SIZES = 2


class SpatialCEM(A.DualTransform):
    """Warps image and mask by a homography, a thin-plate spline or an affine map with a weak spline.

    One of `warps` is drawn uniformly for each call; `icda.transforms.warps` says what each does. An output
    pixel reads the input pixel whose centre is nearest to its sampling position; ties go to the even index.
    Where that index is not within the image, images take `fill` and masks take `fill_mask`. All images and
    masks of a call share the same indices, so image and label stay together exactly.

    Bounding boxes and key points are refused: the warps are given from output to input only.

    Args:
        warps: Which warps to draw from: any of "homography", "tps", "affine_tps".
        interpolation: How images are read: "nearest", as published, or "bilinear", which does not alias.
            Masks are always read by nearest neighbour, and what is outside does not depend on this.
        fill: Value of image pixels outside: one number, or one per channel. 0 is the mean of a normalised
            image.
        fill_mask: Value of mask pixels outside. It must be the ignore index of the data set; 255 is the
            usual one.
        alpha: Whether images, which must then be RGB uint8, come out as RGBA: 255 inside and 0 outside. What is
            outside can so be told from what only looks like `fill` (see `NormalizeInside`).
        homography_scale: Furthest a corner moves along one axis, 0 to below 0.5; the image is 2 wide.
        tps_scale: Furthest a control point of the spline moves along one axis, 0..1.
        affine_tps_scale: The same for the weak spline of "affine_tps", 0..1.
        rotation: Largest angle of the affine map in radians, 0..pi.
        zoom: Furthest its scale lies from 1, 0 to below 1.
        translation: Its largest shift along one axis, normalised, 0..2.
        p: Probability of warping at all.

    Raises:
        UserError: If an argument is out of range; on a call, if an image and a mask differ in size, if
            `fill_mask` does not fit a mask's type, or if bounding boxes or key points are given.

    Targets:
        image, images, mask, masks: any number of channels; images uint8 or float32; masks of any integer type.
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(
        self,
        warps: Sequence[str] = WARPS,
        interpolation: str = "nearest",
        fill: float | Sequence[float] = 0,
        fill_mask: int = 255,
        alpha: bool = False,
        homography_scale: float = 0.333,
        tps_scale: float = 0.333,
        affine_tps_scale: float = 0.08,
        rotation: float = 0.26,
        zoom: float = 0.45,
        translation: float = 0.25,
        p: float = 1.0,
    ) -> None:
        owner = type(self).__name__
        super().__init__(p=check_number(owner, "p", p, 0, 1))
        names = (warps,) if isinstance(warps, str) else tuple(warps)
        if not names or not set(names) <= set(WARPS) or len(set(names)) < len(names):
            raise UserError(f"{owner}: warps is {warps!r}; give one or more of {', '.join(WARPS)}, each once.")
        if interpolation not in INTERPOLATIONS:
            allowed = ", ".join(INTERPOLATIONS)
            raise UserError(f"{owner}: interpolation is {interpolation!r}; expected one of {allowed}.")
        if isinstance(fill_mask, bool) or not isinstance(fill_mask, int):
            raise UserError(f"{owner}: fill_mask is {fill_mask!r}; give the ignore index, a whole number.")
        values = fill if isinstance(fill, Sequence) and not isinstance(fill, str) else (fill,)
        values = tuple(check_number(owner, "fill", v, -math.inf) for v in values)
        below_half, below_one = math.nextafter(0.5, 0), math.nextafter(1, 0)
        self.warps = names
        self.interpolation = interpolation
        self.fill = values if isinstance(fill, Sequence) else fill
        self.fill_mask = fill_mask
        self.alpha = bool(alpha)
        # From 0.5 on, the moved corners may no longer be a convex quadrilateral: no homography then.
        self.homography_scale = check_number(owner, "homography_scale", homography_scale, 0, below_half)
        self.tps_scale = check_number(owner, "tps_scale", tps_scale, 0, 1)
        self.affine_tps_scale = check_number(owner, "affine_tps_scale", affine_tps_scale, 0, 1)
        self.rotation = check_number(owner, "rotation", rotation, 0, math.pi)
        self.zoom = check_number(owner, "zoom", zoom, 0, below_one)
        self.translation = check_number(owner, "translation", translation, 0, 2)
        self._basis: dict[tuple[int, int], geometry.SplineBasis] = {}

    def __getstate__(self) -> dict[str, Any]:
        """State without the cache: it is large and quickly made again (pickling for data-loader workers)."""
        return {**self.__dict__, "_basis": {}}

    @property
    def targets(self) -> dict[str, Callable[..., Any]]:
        """The keys this transform handles, with the method for each."""
        return {
            "image": self.apply,
            "images": self.apply_to_images,
            "mask": self.apply_to_mask,
            "masks": self.apply_to_masks,
            "bboxes": self.apply_to_bboxes,
            "keypoints": self.apply_to_keypoints,
        }

    def _refuse(self, found: str) -> UserError:
        return UserError(
            f"{type(self).__name__}: got {found}; it warps images and masks only. Take the bounding boxes or "
            "key points out of the pipeline."
        )

    def set_processors(self, processors: dict[str, Any]) -> None:
        """Called by `A.Compose` with its bounding-box and key-point processors; refuses both."""
        if processors:
            raise self._refuse(" and ".join(processors))
        super().set_processors(processors)

    def apply_to_bboxes(self, bboxes: np.ndarray, **params: Any) -> np.ndarray:
        """Raises UserError: bounding boxes are not supported."""
        raise self._refuse("bboxes")

    def apply_to_keypoints(self, keypoints: np.ndarray, **params: Any) -> np.ndarray:
        """Raises UserError: key points are not supported."""
        raise self._refuse("keypoints")

    def grid(self, warp: str, uniform: np.ndarray, height: int, width: int) -> np.ndarray:
        """Sampling positions of one warp with this transform's amounts.

        Args:
            warp: One of `WARPS`.
            uniform: Its draws in 0..1, as `icda.transforms.warps` lists them.
            height: Height in pixels.
            width: Width in pixels.

        Returns:
            Positions (H, W, 2) float32, last axis (x, y), normalised.
        """
        if warp == "homography":
            return geometry.homography_grid(uniform, height, width, self.homography_scale)
        size = (height, width)
        if size not in self._basis:
            while len(self._basis) >= _CACHED_SIZES:
                self._basis.pop(next(iter(self._basis)))
            self._basis[size] = geometry.tps_basis(height, width)
        basis = self._basis[size]
        if warp == "tps":
            return geometry.tps_grid(uniform, height, width, self.tps_scale, basis)
        assert warp == "affine_tps", (warp, WARPS)
        amounts = (self.affine_tps_scale, self.rotation, self.zoom, self.translation)
        return geometry.affine_tps_grid(uniform, height, width, *amounts, basis)

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws a warp.

        Returns:
            `warp`, its name; `uniform`, its draws; `position`, where each pixel is read, (H, W, 2) float32, in
            pixels (x, y); `index`, the same rounded, int16, in which everything outside stays outside.
        """
        height, width = params["shape"][:2]
        if not 0 < min(height, width) <= max(height, width) <= _LARGEST_SIDE:
            raise UserError(
                f"{type(self).__name__}: the image is {height} x {width}; sides must be 1..{_LARGEST_SIDE} pixels."
            )
        warp = self.py_random.choice(self.warps)
        uniform = self.random_generator.random(_DRAWS[warp])
        half = np.array(((width - 1) / 2, (height - 1) / 2))
        position = cv2.transform(self.grid(warp, uniform, height, width), np.column_stack([np.diag(half), half]))
        # Rounds half to even and saturates, so that a far position cannot wrap around into the image.
        index, _ = cv2.convertMaps(position, None, cv2.CV_16SC2, nninterpolation=True)
        return {"warp": warp, "uniform": uniform, "position": position, "index": index}

    def apply(self, img: np.ndarray, position: np.ndarray, index: np.ndarray, **params: Any) -> np.ndarray:
        """Warps one image (H, W) or (H, W, C); with `alpha`, (H, W, 3) becomes (H, W, 4)."""
        if self.alpha:
            check_rgb(type(self).__name__, "image", img)
        fill = np.asarray(self.fill, np.float64)
        channels = 1 if img.ndim == 2 else img.shape[2]
        if fill.size not in (1, channels):
            raise UserError(f"{type(self).__name__}: fill has {fill.size} values, the image {channels} channels.")
        self._check_size(img, index)
        fill = np.resize(fill, channels)
        if self.interpolation == "bilinear" and img.dtype in _REMAP_TYPES:
            warped = _read_bilinear(img, position, index, fill)
            return cv2.merge([*cv2.split(warped), 255 * _inside(index, *img.shape[:2])]) if self.alpha else warped
        if self.alpha:
            return _read_nearest(cv2.cvtColor(img, cv2.COLOR_RGB2RGBA), index, np.append(fill, 0))
        return _read_nearest(img, index, fill)

    def apply_to_mask(self, mask: np.ndarray, index: np.ndarray, **params: Any) -> np.ndarray:
        """Warps one mask (H, W) or (H, W, C) by nearest neighbour."""
        self._check_size(mask, index)
        kind = np.dtype(mask.dtype)
        if kind.kind == "b" or (kind.kind in "iu" and not np.iinfo(kind).min <= self.fill_mask <= np.iinfo(kind).max):
            raise UserError(
                f"{type(self).__name__}: fill_mask {self.fill_mask} does not fit a mask of type {kind}; give "
                "the mask as uint8 or a wider integer."
            )
        channels = 1 if mask.ndim == 2 else mask.shape[2]
        return _read_nearest(mask, index, np.full(channels, self.fill_mask))

    def _check_size(self, array: np.ndarray, index: np.ndarray) -> None:
        if array.shape[:2] != index.shape[:2]:
            raise UserError(
                f"{type(self).__name__}: image and mask differ in size, {index.shape[:2]} and {array.shape[:2]}; "
                "resize them to one size first."
            )


def _inside(index: np.ndarray, height: int, width: int) -> np.ndarray:
    """Which pixels read inside: (H, W, 2) int16 indices (x, y) -> (H, W) uint8, 1 inside and 0 outside."""
    # As unsigned numbers, negative indices are too large as well: one comparison instead of two.
    below = index.view(np.uint16).reshape(height, -1) < np.tile(np.array((width, height), np.uint16), width)
    both = np.array((True, True)).view(np.uint16)
    return (below.view(np.uint16) == both).view(np.uint8)  # a tenth of the time of asking along an axis of two


def _read_nearest(array: np.ndarray, index: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """array[y, x] at integer indices, `fill` (one value per channel) outside; keeps type and dimensions."""
    height, width = array.shape[:2]
    flat = array.reshape(height, width, -1)
    if array.dtype == np.uint8 and flat.shape[2] in _PACKED:
        return _read_packed(flat, index, fill)
    if array.dtype not in _REMAP_TYPES:
        x, y = np.clip(index[..., 0], 0, width - 1), np.clip(index[..., 1], 0, height - 1)
        out = flat[y, x]
        out[_inside(index, height, width) == 0] = fill.astype(array.dtype)
        return out.reshape(array.shape)
    parts = []
    for start in range(0, flat.shape[2], _REMAP_CHANNELS):
        part = np.ascontiguousarray(flat[..., start : start + _REMAP_CHANNELS])
        border = [float(v) for v in fill[start : start + _REMAP_CHANNELS]]
        warped = cv2.remap(part, index, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
        parts.append(warped.reshape(part.shape))
    out = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    return out.reshape(array.shape)


def _read_packed(array: np.ndarray, index: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """`_read_nearest` of (H, W, 3) or (H, W, 4) uint8, each pixel moved as one number: half the time."""
    pixels = cv2.cvtColor(array, cv2.COLOR_RGB2RGBA) if array.shape[2] == 3 else np.ascontiguousarray(array)
    colour = np.resize(fill, 4).clip(0, np.iinfo(np.uint8).max).round().astype(np.uint8)
    border = float(colour.view(np.int32)[0])
    pixels = pixels.view(np.int32)[..., 0]
    warped = cv2.remap(pixels, index, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=border)
    warped = warped.view(np.uint8).reshape(*array.shape[:2], 4)
    return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB) if array.shape[2] == 3 else warped


def _read_bilinear(array: np.ndarray, position: np.ndarray, index: np.ndarray, fill: np.ndarray) -> np.ndarray:
    """`array` between pixels, `fill` where `index` is outside; the image's edge is repeated up to there."""
    height, width = array.shape[:2]
    flat = array.reshape(height, width, -1)
    inside = _inside(index, height, width)
    parts = []
    for start in range(0, flat.shape[2], _REMAP_CHANNELS):
        part = np.ascontiguousarray(flat[..., start : start + _REMAP_CHANNELS])
        warped = cv2.remap(part, position, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        colour = fill[start : start + _REMAP_CHANNELS].astype(array.dtype)
        out = np.tile(colour, (height, width)).reshape(part.shape)
        parts.append(cv2.copyTo(warped.reshape(part.shape), inside, out).reshape(part.shape))
    out = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
    return out.reshape(array.shape)
