"""CEM, the composite enhancement method: the pipeline that turns (S, label S) into (E, label E)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import albumentations as A

from icda.errors import UserError
from icda.transforms.checks import check_number, check_range
from icda.transforms.illumination import StyleIllumination, TranslatedIllumination
from icda.transforms.names import ILLUMINATIONS
from icda.transforms.normalize import NormalizeInside
from icda.transforms.relight import RelightIllumination
from icda.transforms.spatial import SpatialCEM


def build_cem(
    illumination: str,
    mean: Sequence[float],
    std: Sequence[float],
    fill_mask: int,
    spatial: bool | Mapping[str, Any] = True,
    illumination_options: Mapping[str, Any] | None = None,
    brightness: float = 0.6,
    contrast: float = 0.6,
    saturation: float = 0.6,
    hue: float = 0.0,
    jitter_p: float = 1.0,
    blur_kernel: int = 7,
    blur_sigma: tuple[float, float] = (0.2, 2.0),
    blur_p: float = 0.2,
    seed: int | None = None,
) -> A.Compose:
    """The enhanced branch of method section 2: illumination, jitter, blur, warp, normalisation.

    Crop and flip come before it, together with the plain image. Defaults are the published numbers. The published
    warp follows normalisation and brings in 0 from outside; reading the nearest pixel and then normalising it is the
    same, and moves a quarter of the bytes.

    Args:
        illumination: "translated" (replaced by the image given as `translated=`), "style" (lit like the night
            image given as `style_image=`), "relight" (physics; needs nothing) or "none".
        mean: Mean of R, G, B for normalisation, of values in 0..1.
        std: Their standard deviations, above 0.
        fill_mask: Label of pixels outside the warped image: the data set's ignore index.
        spatial: True for `SpatialCEM` with its defaults, False for no warp, or options of `SpatialCEM` but
            `fill`, `fill_mask` and `alpha`.
        illumination_options: Options of the illumination transform.
        brightness: Half-width of the range of the brightness factor around 1, 0..1.
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Largest turn of the hue, 0..0.5 of the circle.
        jitter_p: Probability of the colour jitter.
        blur_kernel: Side of the Gaussian blur's kernel, odd.
        blur_sigma: Range of its standard deviation, pixels.
        blur_p: Probability of the blur.
        seed: Seed of the pipeline's randomness; `icda.transforms.reseed` sets it for one call.

    Returns:
        A pipeline: `pipeline(image=<RGB uint8 (H, W, 3)>, mask=<integer (H, W)>, ...)` returns a dictionary with
        `image`, normalised float32 (H, W, 3), and `mask`.

    Raises:
        UserError: If an argument is out of range or not known.
    """
    owner = "build_cem"
    mean, std = _three(owner, "mean", mean, 0.0), _three(owner, "std", std, 1e-6)
    if isinstance(blur_kernel, bool) or not isinstance(blur_kernel, int) or blur_kernel < 1 or blur_kernel % 2 == 0:
        raise UserError(f"{owner}: blur_kernel is {blur_kernel!r}; give an odd whole number.")
    steps = _illumination(illumination, illumination_options)
    steps.append(
        A.ColorJitter(
            brightness=check_number(owner, "brightness", brightness, 0, 1),
            contrast=check_number(owner, "contrast", contrast, 0, 1),
            saturation=check_number(owner, "saturation", saturation, 0, 1),
            hue=check_number(owner, "hue", hue, 0, 0.5),
            p=check_number(owner, "jitter_p", jitter_p, 0, 1),
        )
    )
    steps.append(
        A.GaussianBlur(
            blur_limit=(blur_kernel, blur_kernel),
            sigma_limit=check_range(owner, "blur_sigma", blur_sigma, 0.01),
            p=check_number(owner, "blur_p", blur_p, 0, 1),
        )
    )
    steps += _spatial(spatial, fill_mask)
    steps.append(NormalizeInside(mean, std))
    return A.Compose(steps, seed=seed)


def _three(owner: str, name: str, values: Sequence[float], low: float) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 3:
        raise UserError(f"{owner}: {name} is {values!r}; give three numbers, for R, G and B.")
    return tuple(check_number(owner, name, float(v), low, math.inf) for v in values)


def _options(name: str, options: Any) -> dict[str, Any]:
    if not isinstance(options, Mapping):
        raise UserError(f"build_cem: options of {name} are {options!r}; give a mapping of names to values.")
    return dict(options)


def _make(transform: type[A.BasicTransform], options: dict[str, Any]) -> A.BasicTransform:
    """`transform(**options)`, with a misspelt option reported as the user's mistake."""
    allowed = list(signature(transform).parameters)
    if unknown := sorted(set(options) - set(allowed)):
        raise UserError(f"{transform.__name__}: unknown option {unknown}; it knows {', '.join(allowed)}.")
    return transform(**options)


def _illumination(name: str, options: Mapping[str, Any] | None) -> list[A.BasicTransform]:
    kinds = {
        "translated": TranslatedIllumination,
        "style": StyleIllumination,
        "relight": RelightIllumination,
    }
    assert set(ILLUMINATIONS) == {*kinds, "none"}, (ILLUMINATIONS, list(kinds))
    given = _options(f"illumination {name!r}", options or {})
    if name == "none" and not given:
        return []
    if name not in kinds:
        hint = "; it takes no options" if name == "none" else ""
        raise UserError(f"build_cem: illumination is {name!r}{hint}; expected one of {', '.join(ILLUMINATIONS)}.")
    return [_make(kinds[name], given)]


def _spatial(options: bool | Mapping[str, Any] | None, fill_mask: int) -> list[A.BasicTransform]:
    if options is False or options is None:
        return []
    given = {} if options is True else _options("SpatialCEM", options)
    if reserved := {"fill", "fill_mask", "alpha"} & set(given):
        raise UserError(
            f"build_cem: spatial gives {sorted(reserved)}; fill_mask is an argument here, the others fixed."
        )
    return [_make(SpatialCEM, {**given, "fill": 0, "fill_mask": fill_mask, "alpha": True})]
