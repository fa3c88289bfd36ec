"""The enhanced branch as a whole: order, published numbers, and what albumentations makes of them."""

from __future__ import annotations

import multiprocessing
import pickle

import albumentations as A
import numpy as np
import pytest
import torch
from torchvision.transforms import functional as reference

from icda.errors import UserError
from icda.transforms import ILLUMINATIONS, WARPS, SpatialCEM, build_cem, reseed

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def sample() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 56, 3), np.uint8)
    night = rng.integers(0, 60, (40, 56, 3), np.uint8)
    mask = rng.integers(0, 19, (40, 56), np.uint8)
    return {"image": image, "mask": mask, "translated": night, "style_image": night}


def build(illumination: str = "none", **options) -> A.Compose:
    return build_cem(illumination, mean=MEAN, std=STD, fill_mask=255, **options)


def run(pipeline: A.Compose, sample: dict, seed: int) -> dict:
    reseed(pipeline, seed)
    return pipeline(**sample)


def _in_worker(pipeline: A.Compose, sample: dict, results: multiprocessing.Queue) -> None:
    results.put(run(pipeline, sample, 4)["image"])


@pytest.mark.parametrize("illumination", ILLUMINATIONS)
def test_every_kind_gives_a_normalised_image_with_its_label(illumination: str, sample: dict) -> None:
    out = run(build(illumination), sample, 1)
    assert out["image"].dtype == np.float32 and out["image"].shape == (40, 56, 3)
    outside = out["mask"] == 255
    assert outside.any() and not outside.all()
    assert (out["image"][outside] == 0).all()
    black, white = (0 - np.array(MEAN)) / STD, (1 - np.array(MEAN)) / STD
    assert (out["image"] >= black - 1e-5).all() and (out["image"] <= white + 1e-5).all()


def test_order_and_published_defaults() -> None:
    steps = build("translated").transforms
    names = [type(step).__name__ for step in steps]
    assert names == ["TranslatedIllumination", "ColorJitter", "GaussianBlur", "SpatialCEM", "NormalizeInside"]
    jitter, blur, warp, normalize = steps[1:]
    assert jitter.brightness == jitter.contrast == jitter.saturation == (0.4, 1.6)
    assert jitter.hue == (0, 0) and jitter.p == 1
    assert blur.blur_limit == (7, 7) and blur.sigma_limit == (0.2, 2.0) and blur.p == 0.2
    assert (normalize.mean, normalize.std) == (MEAN, STD) and (warp.fill, warp.fill_mask, warp.p) == (0, 255, 1)


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("size", [(40, 56), (37, 37), (23, 64)])
def test_nearest_warp_and_normalisation_may_change_places(warp: str, size: tuple[int, int]) -> None:
    """The published order, normalise first and bring in 0, gives the same numbers bit for bit."""
    rng = np.random.default_rng(1)
    image, mask = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 19, size, np.uint8)
    published = A.Compose([A.Normalize(mean=MEAN, std=STD), SpatialCEM(warp, fill=0)])
    ours = build(jitter_p=0, blur_p=0, spatial={"warps": [warp]})
    for seed in range(8):
        expected, out = (run(pipeline, {"image": image, "mask": mask}, seed) for pipeline in (published, ours))
        assert out["image"].dtype == np.float32 and out["image"].flags.c_contiguous
        np.testing.assert_array_equal(out["image"].view(np.int32), expected["image"].view(np.int32))
        np.testing.assert_array_equal(out["mask"], expected["mask"])


@pytest.mark.parametrize("warp", WARPS)
def test_bilinear_warp_before_normalisation_rounds_to_levels(warp: str) -> None:
    """Between pixels the warp now gives whole levels: off by half a level, and cv2 weighs in steps of 1/32."""
    rng = np.random.default_rng(1)
    image, mask = rng.integers(0, 256, (37, 48, 3), np.uint8), rng.integers(0, 19, (37, 48), np.uint8)
    published = A.Compose([A.Normalize(mean=MEAN, std=STD), SpatialCEM(warp, "bilinear", fill=0)])
    ours = build(jitter_p=0, blur_p=0, spatial={"warps": [warp], "interpolation": "bilinear"})
    for seed in range(4):
        expected, out = (run(pipeline, {"image": image, "mask": mask}, seed) for pipeline in (published, ours))
        np.testing.assert_array_equal(out["mask"], expected["mask"])
        np.testing.assert_array_equal((out["image"] == 0).all(-1), (expected["image"] == 0).all(-1))
        assert np.abs((out["image"] - expected["image"]) * STD * 255).max() <= 0.51


def test_a_warp_that_is_left_out_now_and_then_leaves_a_normalised_image(sample: dict) -> None:
    pipeline = build(jitter_p=0, blur_p=0, spatial={"p": 0.5})
    expected = A.Normalize(mean=MEAN, std=STD)(image=sample["image"])["image"]
    found = [np.array_equal(run(pipeline, sample, seed)["image"], expected) for seed in range(40)]
    assert 8 < sum(found) < 32


def test_fill_mask_is_the_one_that_was_given(sample: dict) -> None:
    pipeline = build_cem("none", mean=MEAN, std=STD, fill_mask=99)
    out = run(pipeline, sample, 1)
    assert (out["mask"] == 99).any() and not (out["mask"] == 255).any()


def test_without_warp_the_label_stays(sample: dict) -> None:
    out = run(build(spatial=False), sample, 0)
    np.testing.assert_array_equal(out["mask"], sample["mask"])


def test_blur_is_the_published_one(sample: dict) -> None:
    """Kernel 7 whatever the sigma, as torchvision blurs; sigma uniform in 0.2 .. 2.0."""
    blur = build(blur_p=1.0).transforms[1]
    sigmas = []
    for seed in range(200):
        blur.set_random_seed(seed)
        kernel = blur.get_params_dependent_on_data({}, {})["kernel"]
        assert kernel.shape == (7,)
        sigmas.append(np.sqrt(0.5 / np.log(kernel[3] / kernel[2])))
    assert 0.2 <= min(sigmas) < 0.25 and 1.95 < max(sigmas) <= 2.0
    assert abs(np.mean(sigmas) - 1.1) < 0.12  # 3 standard deviations of the mean of 200
    blur.set_random_seed(199)
    image = torch.from_numpy(sample["image"]).permute(2, 0, 1)
    expected = reference.gaussian_blur(image, [7, 7], [sigmas[-1]] * 2).permute(1, 2, 0).numpy()
    assert np.abs(blur(image=sample["image"])["image"].astype(int) - expected).max() <= 1


def test_jitter_is_torchvisions(sample: dict) -> None:
    """Same factors, same order as torchvision without rounding.

    Each of our three steps rounds by half a level at most. A later one amplifies that 2.2 times at most
    (contrast and saturation: factor 1.6, and 0.6 through the mean or the grey value): 0.5 * (1 + 2.2 + 2.2^2).
    """
    jitter = build().transforms[0]
    image = torch.from_numpy(sample["image"]).permute(2, 0, 1) / 255
    steps = [reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation]
    for seed in range(10):
        jitter.set_random_seed(seed)
        out = jitter(image=sample["image"])["image"]
        params = jitter.get_applied_params()
        factors = [params[name] for name in ("brightness", "contrast", "saturation")]
        assert all(0.4 <= factor <= 1.6 for factor in factors)
        expected = image
        for step in params["order"]:
            expected = expected if step == 3 else steps[step](expected, factors[step])
        difference = np.abs(out - 255 * expected.permute(1, 2, 0).numpy())
        assert difference.max() <= 4.02 and difference.mean() < 1


@pytest.mark.parametrize("illumination", ILLUMINATIONS)
def test_seed_round_trip_and_pickle(illumination: str, sample: dict) -> None:
    pipeline = build(illumination, spatial={"interpolation": "bilinear"})
    copies = [A.from_dict(A.to_dict(pipeline)), pickle.loads(pickle.dumps(pipeline)), pipeline]
    expected = run(pipeline, sample, 7)
    for candidate in copies:
        out = run(candidate, sample, 7)
        np.testing.assert_array_equal(out["image"], expected["image"])
        np.testing.assert_array_equal(out["mask"], expected["mask"])
    assert not np.array_equal(run(pipeline, sample, 8)["image"], expected["image"])


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_output(start: str, sample: dict) -> None:
    pipeline = build("style")
    expected = run(pipeline, sample, 4)["image"]
    context = multiprocessing.get_context(start)
    results = context.Queue()
    worker = context.Process(target=_in_worker, args=(pipeline, sample, results))
    worker.start()
    np.testing.assert_array_equal(results.get(timeout=60), expected)
    worker.join()


def test_one_stream_for_all_transforms_makes_them_independent() -> None:
    """Blur and darkening must not go together; with one seed per transform they would."""
    pipeline = build()
    image = np.full((4, 4, 3), 128, np.uint8)
    brightness, blurred = [], []
    for seed in range(300):
        reseed(pipeline, seed)
        pipeline(image=image)
        brightness.append(pipeline.transforms[0].params["brightness"])
        blurred.append(bool(pipeline.transforms[1].params))
    blurred, brightness = np.array(blurred), np.array(brightness)
    assert 0.12 < blurred.mean() < 0.28
    assert abs(brightness[blurred].mean() - brightness[~blurred].mean()) < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"illumination": "cyclegan"}, "translated, style, relight, none"),
        ({"illumination": "none", "illumination_options": {"p": 1}}, "takes no options"),
        ({"illumination": "style", "illumination_options": {"strenght": 1}}, "strenght"),
        ({"illumination": "none", "spatial": {"fill_mask": 0}}, "fill_mask"),
        ({"illumination": "none", "spatial": {"alpha": False}}, "alpha"),
        ({"illumination": "none", "spatial": {"warp": "tps"}}, "unknown option"),
        ({"illumination": "none", "spatial": 3}, "mapping"),
        ({"illumination": "none", "brightness": 1.5}, "brightness"),
        ({"illumination": "none", "blur_kernel": 6}, "blur_kernel"),
        ({"illumination": "none", "blur_sigma": (2.0, 0.2)}, "blur_sigma"),
        ({"illumination": "none", "blur_sigma": (0.0, 2.0)}, "blur_sigma"),
        ({"illumination": "none", "blur_p": 2}, "blur_p"),
        ({"illumination": "none", "std": (0.2, 0.2)}, "std"),
        ({"illumination": "none", "std": (0.2, 0.2, 0)}, "std"),
    ],
)
def test_wrong_arguments_are_reported(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        build_cem(**{"mean": MEAN, "std": STD, "fill_mask": 255, **options})
    assert "\n" not in str(error.value)
