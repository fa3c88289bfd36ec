"""Illumination transforms: what they promise about statistics, and about odd inputs."""

from __future__ import annotations

import pickle

import albumentations as A
import cv2
import numpy as np
import pytest

from icda.errors import UserError
from icda.transforms import (
    LiftIllumination,
    RelightIllumination,
    StyleIllumination,
    TranslatedIllumination,
    light,
    reseed,
)
from icda.transforms.relight import sky_mask


def street(sky: tuple[int, int, int], wall: tuple[int, int, int], road: tuple[int, int, int]) -> np.ndarray:
    """A street of flat regions with a little texture, (90, 120, 3) uint8."""
    image = np.empty((90, 120, 3), np.int16)
    image[:36], image[36:60], image[60:] = sky, wall, road
    image += np.random.default_rng(0).integers(-5, 6, image.shape, np.int16)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def day() -> np.ndarray:
    return street((190, 215, 245), (150, 120, 95), (95, 95, 98))


@pytest.fixture
def night() -> np.ndarray:
    return street((6, 7, 14), (60, 45, 20), (75, 58, 30))


def transforms() -> list[A.ImageOnlyTransform]:
    return [StyleIllumination(), RelightIllumination(), LiftIllumination(strength=(0.3, 1.0))]


def gray(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)


def test_translation_replaces_the_image_and_nothing_else(day: np.ndarray, night: np.ndarray) -> None:
    mask = np.arange(90 * 120).reshape(90, 120)
    out = A.Compose([TranslatedIllumination()], strict=True)(image=day, mask=mask, translated=night)
    np.testing.assert_array_equal(out["image"], night)
    np.testing.assert_array_equal(out["mask"], mask)
    assert not np.shares_memory(out["image"], night)


@pytest.mark.parametrize(
    "wrong", [None, np.zeros((90, 119, 3), np.uint8), np.zeros((90, 120, 3), np.float32), [1], np.zeros((90, 120))]
)
def test_wrong_translation_is_reported(day: np.ndarray, wrong: object) -> None:
    with pytest.raises(UserError, match="translated"):
        A.Compose([TranslatedIllumination()])(image=day, translated=wrong)


@pytest.mark.parametrize("transform", [TranslatedIllumination(), StyleIllumination()])
def test_missing_second_image_is_reported(day: np.ndarray, transform: A.ImageOnlyTransform) -> None:
    with pytest.raises(UserError, match=f"no '{transform.metadata_key}' was given"):
        A.Compose([transform])(image=day)


def test_style_moves_the_statistics_to_the_target(day: np.ndarray, night: np.ndarray) -> None:
    """Over seeds: brightness, its quantiles and the colour cast come much nearer to the night image's."""
    for seed in range(6):
        out = A.Compose([StyleIllumination(strength=1.0)], seed=seed)(image=day, style_image=night)["image"]
        for statistic, share in (
            (lambda i: gray(i).mean(), 0.15),
            (lambda i: np.quantile(gray(i), 0.9), 0.25),
            (lambda i: i[..., 0].mean() / i[..., 2].mean(), 0.5),
        ):
            before, after = (abs(statistic(i) - statistic(night)) for i in (day, out))
            assert after < share * before, (seed, before, after)


def test_style_turns_the_order_of_sky_and_road_around(day: np.ndarray, night: np.ndarray) -> None:
    """By day the sky is the brightest part, by night the darkest; no tone curve of the whole image does that."""
    transform = StyleIllumination(strength=1.0, layout=0.9, layout_detail=0.5)
    out = gray(A.Compose([transform], seed=0)(image=day, style_image=night)["image"])
    assert gray(day)[:30].mean() > gray(day)[70:].mean()
    assert out[:20].mean() < out[70:].mean()


def test_style_strength_is_monotone_and_zero_is_nothing(day: np.ndarray, night: np.ndarray) -> None:
    means = []
    for strength in (0.0, 0.4, 0.7, 1.0):
        pipeline = A.Compose([StyleIllumination(strength=strength)], seed=3)
        out = pipeline(image=day, style_image=night)["image"]
        means.append(gray(out).mean())
    assert means[0] == gray(day).mean()
    assert means[0] > means[1] > means[2] > means[3]


def test_style_keeps_detail(day: np.ndarray, night: np.ndarray) -> None:
    """The texture of the road survives: local contrast stays correlated."""
    transform = StyleIllumination(strength=0.8, noise=0.0)
    out = gray(A.Compose([transform], seed=1)(image=day, style_image=night)["image"])
    detail = [(i - cv2.blur(i, (9, 9)))[66:84, 6:-6].ravel() for i in (gray(day), out)]
    assert np.corrcoef(*detail)[0, 1] > 0.6


def test_style_adds_noise_of_the_targets_level(day: np.ndarray) -> None:
    flat = cv2.resize(np.full((9, 12, 3), 120, np.uint8), (120, 90))
    dark = np.full((200, 200, 3), 40.0)
    noisy = np.clip(dark + np.random.default_rng(0).normal(0, 6, (200, 200, 1)), 0, 255).astype(np.uint8)
    out = A.Compose([StyleIllumination(strength=1.0, noise=1.0)], seed=0)(image=flat, style_image=noisy)["image"]
    assert 4 < light.noise_level(gray(out).astype(np.float32)) < 9


def test_relight_darkens_to_the_drawn_exposure(day: np.ndarray) -> None:
    for exposure in (0.01, 0.04):
        transform = RelightIllumination(exposure=exposure, lamps=0, shot_noise=0, read_noise=0)
        out = A.Compose([transform], seed=1)(image=day)["image"]
        mean = light.luma(light.srgb_to_linear(out)).mean()
        np.testing.assert_allclose(mean, exposure, rtol=0.1)


def test_relight_darkens_the_sky_most_and_finds_only_the_sky(day: np.ndarray) -> None:
    mask = sky_mask(day, 0.5)
    assert mask[:30].min() > 0.8 and mask[42:].max() < 0.05
    out = A.Compose([RelightIllumination(lamps=0)], seed=0)(image=day)["image"]
    assert gray(out)[:30].mean() < 0.6 * gray(out)[66:].mean()


def test_relight_does_not_brighten_a_dark_image() -> None:
    dark = np.full((40, 60, 3), 8, np.uint8)
    out = A.Compose([RelightIllumination(exposure=0.2, lamps=0, read_noise=0)], seed=0)(image=dark)["image"]
    assert gray(out).mean() <= 8.5


def test_lift_reaches_its_target_mean_and_keeps_a_day_image(day: np.ndarray, night: np.ndarray) -> None:
    lift = LiftIllumination(mean=0.18, clip_limit=0)
    linear = light.luma(light.srgb_to_linear(lift(image=night)["image"]))
    np.testing.assert_allclose(linear.mean(), 0.18, rtol=0.05)
    bright = lift(image=np.full((30, 40, 3), 200, np.uint8))["image"]
    np.testing.assert_allclose(bright, 200, atol=2)


def test_lift_reduces_the_colour_cast(night: np.ndarray) -> None:
    out = LiftIllumination()(image=night)["image"]
    cast = [i[..., 0].mean() / i[..., 2].mean() for i in (night, out)]
    assert abs(cast[1] - 1) < 0.6 * abs(cast[0] - 1)


def test_lift_is_deterministic(night: np.ndarray) -> None:
    lift = LiftIllumination()
    np.testing.assert_array_equal(lift(image=night)["image"], lift(image=night)["image"])


@pytest.mark.parametrize("transform", transforms(), ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3), (37, 53)])
@pytest.mark.parametrize("value", [0, 255, None])
def test_odd_images(transform: A.ImageOnlyTransform, size: tuple[int, int], value: int | None) -> None:
    rng = np.random.default_rng(0)
    random = rng.integers(0, 256, (*size, 3), np.uint8)
    image = random if value is None else np.full((*size, 3), value, np.uint8)
    with np.errstate(all="raise", under="ignore"):
        for style in (random, image, np.zeros((1, 1, 3), np.uint8), np.full((50, 20, 3), 255, np.uint8)):
            out = A.Compose([transform], seed=0)(image=image, style_image=style)["image"]
            assert out.shape == image.shape and out.dtype == np.uint8


@pytest.mark.parametrize("transform", transforms(), ids=lambda t: type(t).__name__)
def test_seed_decides_and_round_trips_keep_the_output(
    transform: A.ImageOnlyTransform, day: np.ndarray, night: np.ndarray
) -> None:
    pipeline = A.Compose([transform], seed=5)
    data = {"image": day, "style_image": night}
    copies = [pickle.loads(pickle.dumps(pipeline)), A.from_dict(A.to_dict(pipeline))]
    outputs = []
    for candidate in (pipeline, *copies, pipeline):
        reseed(candidate, 11)
        outputs.append(candidate(**data)["image"])
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])
    reseed(pipeline, 12)
    assert not np.array_equal(pipeline(**data)["image"], outputs[0])


@pytest.mark.parametrize("transform", [*transforms(), TranslatedIllumination()])
def test_images_of_another_type_are_reported(transform: A.ImageOnlyTransform, day: np.ndarray) -> None:
    for wrong in (day.astype(np.float32), day[..., 0], day[..., :2]):
        with pytest.raises(UserError):
            A.Compose([transform])(image=wrong, style_image=day, translated=day)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (TranslatedIllumination, {"metadata_key": "image"}),
        (TranslatedIllumination, {"p": -1}),
        (StyleIllumination, {"strength": (0.9, 0.1)}),
        (StyleIllumination, {"strength": 1.1}),
        (StyleIllumination, {"layout": "much"}),
        (StyleIllumination, {"max_slope": 0}),
        (RelightIllumination, {"exposure": (0, 0.1)}),
        (RelightIllumination, {"lamps": (0.5, 2)}),
        (RelightIllumination, {"cast": (-2, 0)}),
        (LiftIllumination, {"mean": 0}),
        (LiftIllumination, {"tiles": 2.5}),
        (LiftIllumination, {"strength": (0, 1, 2)}),
    ],
)
def test_wrong_arguments_are_reported_at_construction(kind: type, arguments: dict) -> None:
    with pytest.raises(UserError) as error:
        kind(**arguments)
    message = str(error.value)
    assert "\n" not in message and kind.__name__ in message and next(iter(arguments)) in message
