"""Pseudo labels and the mix: shares, borders, what is pasted, what is drawn, and the augmentation."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torchvision.transforms.v2 import functional as TF

from icda.distributed import rank, world_size
from icda.training.dacs import WEIGHTS, DacsDraws, Layer, augment, blur_kernel, draw_dacs, mix, pseudo_label

IDS = (*range(19), 255)
MEAN, STD = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])


def test_one_weight_for_the_batch_is_the_share_of_confident_pixels():
    logits = torch.zeros(2, 2, 4, 4)
    logits[0, 1, :, :2] = 10  # 8 of 32 pixels are sure
    pseudo = pseudo_label(logits, 0.968, (1, 1))
    assert pseudo.share.item() == 8 / 32  # rows at the border included
    assert pseudo.weight[:, 1:-1].unique().tolist() == [8 / 32]
    assert not pseudo.weight[:, [0, -1]].any()
    assert pseudo.labels[0, :, :2].unique().tolist() == [1]
    sure = 1 / (1 + math.exp(-10))
    assert pseudo.confidence.item() == pytest.approx((8 * sure + 24 * 0.5) / 32)


SURE = 1 / (1 + math.exp(-10))


@pytest.mark.parametrize(
    ("weigh", "sure", "unsure_beside", "unsure_image"),
    [
        ("batch", 8 / 32, 8 / 32, 8 / 32),
        ("image", 8 / 16, 8 / 16, 0),
        ("pixel", 1, 0, 0),
        ("probability", SURE, 0.5, 0.5),
    ],
)
def test_weights_by_hand(weigh, sure, unsure_beside, unsure_image):
    logits = torch.zeros(2, 2, 4, 4)
    logits[0, 1, :, :2] = 10  # the left half of the first image is sure
    pseudo = pseudo_label(logits, 0.968, (1, 2), weigh)
    expected = torch.zeros(2, 4, 4)
    expected[0, 1, :2], expected[0, 1, 2:], expected[1, 1] = sure, unsure_beside, unsure_image  # between the borders
    torch.testing.assert_close(pseudo.weight, expected)
    plain = pseudo_label(logits, 0.968, (1, 2))
    assert all(torch.equal(getattr(pseudo, name), getattr(plain, name)) for name in ("labels", "share", "confidence"))


def test_no_border():
    assert pseudo_label(torch.zeros(1, 2, 4, 4), 0.5, (0, 0)).weight.min() == 1


def test_half_of_the_ids_rounded_up_the_ignored_one_among_them():
    labels = torch.tensor([[[0, 1, 2, 2]], [[255, 7, 7, 7]]])
    seen = Counter()
    for seed in range(300):
        classes = draw_dacs(np.random.default_rng(seed), labels, IDS).classes
        assert len(classes) == len(set(classes)) == 3
        seen.update(classes)
    assert set(seen) == {0, 1, 2, 7, 255}
    assert all(abs(n / 300 - 3 / 5) < 0.12 for n in seen.values())


def test_rare_classes_are_drawn_in_proportion_to_one_over_the_root_of_their_pixels():
    labels = torch.tensor([0] * 90 + [5] * 10 + [255] * 40).reshape(1, 10, 14)
    # Of three ids two are drawn, one after the other, without replacement.
    chance = {i: n**-0.5 for i, n in ((0, 90), (5, 10), (255, 40))}
    total = sum(chance.values())
    chance = {i: c / total for i, c in chance.items()}
    expected = {
        i: sum(chance[a] * chance[b] / (1 - chance[a]) for a in chance for b in chance if a != b and i in (a, b))
        for i in chance
    }
    seen = Counter()
    for seed in range(2000):
        seen.update(draw_dacs(np.random.default_rng(seed), labels, IDS, rare=True).classes)
    assert sum(expected.values()) == pytest.approx(2)
    assert {i: n / 2000 for i, n in seen.items()} == pytest.approx(expected, abs=0.04)


def test_what_is_pasted_keeps_its_own_weight():
    labels = torch.tensor([[[0, 1], [1, 0]]])
    weight = torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    night, day = Layer(torch.ones(1, 3, 2, 2), labels, weight), Layer(torch.zeros(1, 3, 2, 2), labels + 5)
    image, mixed, weights = mix(night, day, DacsDraws((1,)), MEAN, STD)
    assert image[0, 0].tolist() == [[0, 1], [1, 0]] and mixed.tolist() == [[[5, 1], [1, 5]]]
    torch.testing.assert_close(weights, torch.tensor([[[1.0, 0.2], [0.3, 1.0]]]))


def test_probabilities_and_ranges_of_the_draws():
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    draws = [draw_dacs(np.random.default_rng(seed), labels, IDS) for seed in range(1000)]
    jitter = [d.jitter for d in draws if d.jitter is not None]
    blur = [d.blur for d in draws if d.blur is not None]
    assert len(jitter) / 1000 == pytest.approx(0.8, abs=0.05) and len(blur) / 1000 == pytest.approx(0.5, abs=0.06)
    factors = np.array([f for image in jitter for _, f in image])
    assert np.allclose(factors.min(0), [0.8, 0.8, 0.8, -0.2], atol=0.01)
    assert np.allclose(factors.max(0), [1.2, 1.2, 1.2, 0.2], atol=0.01)
    assert all(len({f for _, f in image}) == 2 for image in jitter)  # strengths differ from image to image
    sigmas = np.array(blur)
    assert 0.15 <= sigmas.min() < 0.17 and 1.13 < sigmas.max() <= 1.15


def test_pasted_pixels_come_from_the_source_with_weight_one():
    torch.manual_seed(0)
    source, target = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    labels = torch.randint(0, 4, (2, 8, 8))
    pseudo = pseudo_label(torch.randn(2, 4, 8, 8), 0.5, (1, 1))
    under = Layer(target, pseudo.labels, pseudo.weight)
    image, mixed, weight = mix(Layer(source, labels), under, DacsDraws((1, 3)), MEAN, STD)
    for b in range(2):
        for y in range(8):
            for x in range(8):
                pasted = labels[b, y, x].item() in (1, 3)
                assert torch.equal(image[b, :, y, x], (source if pasted else target)[b, :, y, x])
                assert mixed[b, y, x] == (labels if pasted else pseudo.labels)[b, y, x]
                assert weight[b, y, x] == (1 if pasted else pseudo.weight[b, y, x])


@pytest.mark.parametrize(("side", "kernel"), [(512, 51), (530, 53), (540, 53), (960, 95), (128, 13), (20, 1), (5, 1)])
def test_kernel_is_the_largest_odd_number_not_above_a_tenth_rounded_up(side, kernel):
    assert blur_kernel(side) == kernel
    assert kernel % 2 == 1 and kernel <= math.ceil(side / 10) < kernel + 2


def test_jitter_works_on_denormalised_values():
    values = torch.rand(1, 3, 6, 6) * 0.4
    normalised = (values - MEAN[:, None, None]) / STD[:, None, None]
    draws = DacsDraws((), jitter=(((0, 1, 2, 3), (1.1, 0.9, 1.2, 0.1)),))
    out = augment(normalised, MEAN, STD, draws) * STD[:, None, None] + MEAN[:, None, None]
    expected = TF.adjust_saturation(TF.adjust_contrast(TF.adjust_brightness(values, 1.1), 0.9), 1.2)
    torch.testing.assert_close(out[0], TF.adjust_hue(expected, 0.1)[0], atol=1e-5, rtol=0)


def test_neutral_jitter_changes_nothing_and_values_stay_in_range():
    values = torch.rand(2, 3, 6, 6)
    normalised = (values - MEAN[:, None, None]) / STD[:, None, None]
    neutral = ((0, 1, 2, 3), (1.0, 1.0, 1.0, 0.0))
    torch.testing.assert_close(
        augment(normalised, MEAN, STD, DacsDraws((), (neutral,) * 2)), normalised, atol=1e-5, rtol=0
    )
    strong = ((0, 1, 2, 3), (1.2, 1.2, 1.2, 0.2))
    out = augment(normalised, MEAN, STD, DacsDraws((), (strong,) * 2)) * STD[:, None, None] + MEAN[:, None, None]
    assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6


@pytest.mark.parametrize("size", [(40, 64), (95, 31), (8, 8)])
def test_blur_is_torchvisions(size):
    image = torch.rand(1, 3, *size)
    out = augment(image, torch.zeros(3), torch.ones(3), DacsDraws((), blur=(0.9,)))
    kernel = [blur_kernel(size[1]), blur_kernel(size[0])]
    torch.testing.assert_close(out, TF.gaussian_blur(image, kernel, [0.9, 0.9]), rtol=1e-5, atol=1e-6)


def test_blur_spreads_by_its_standard_deviation():
    image = torch.zeros(1, 3, 200, 200)
    image[:, :, 100, 100] = 1
    out = augment(image, torch.zeros(3), torch.ones(3), DacsDraws((), blur=(1.1,)))[0, 0]
    positions = torch.arange(200) - 100.0
    assert (out.sum(0) * positions**2).sum().sqrt().item() == pytest.approx(1.1, rel=0.01)
    assert out.sum().item() == pytest.approx(1)


def test_nothing_of_a_mix_is_in_half_precision():
    image, labels = torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.long)
    pseudo = pseudo_label(torch.randn(2, 4, 32, 32).bfloat16(), 0.5, (0, 0))
    layers = Layer(image, labels), Layer(image, pseudo.labels, pseudo.weight)
    draws = DacsDraws((), jitter=(((3, 0, 2, 1), (1.1, 0.9, 1.2, 0.1)),) * 2, blur=(1.0, 0.5))
    expected = mix(*layers, draws, MEAN, STD)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _, weight = mix(*layers, draws, MEAN, STD)
    assert weight.dtype == pseudo.confidence.dtype == torch.float32
    assert torch.equal(mixed, expected)


def share_of_a_batch(labels: torch.Tensor, logits: torch.Tensor) -> tuple[object, ...]:
    own = slice(rank() * len(labels) // world_size(), (rank() + 1) * len(labels) // world_size())
    draws = [draw_dacs(np.random.default_rng(seed), labels[own], IDS, rare=seed > 19) for seed in range(40)]
    pseudo = pseudo_label(logits[own], 0.5, (1, 0))
    weights = [pseudo_label(logits[own], 0.5, (1, 0), weigh).weight for weigh in WEIGHTS]
    return draws, pseudo.share, torch.stack([pseudo.weight, *weights], 1), pseudo.labels


@pytest.mark.slow
def test_two_processes_draw_and_weigh_as_one_with_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    labels, logits = torch.randint(0, 9, (4, 3, 3)), torch.randn(4, 5, 6, 7) * 2
    labels[2, 0] = 255  # the two halves hold different ids
    draws, share, weight, classes = share_of_a_batch(labels, logits)
    parts = on_ranks(share_of_a_batch, 2, tmp_path, labels, logits)
    for number, whole in enumerate(draws):
        first, second = (part[0][number] for part in parts)
        assert first.classes == second.classes == whole.classes
        for name in ("jitter", "blur"):
            joined, ours = getattr(whole, name), (getattr(first, name), getattr(second, name))
            assert ours == (None, None) if joined is None else ours[0] + ours[1] == joined
    assert 0 < share < 1
    assert all(part[1] == share for part in parts)
    assert torch.equal(torch.cat([part[2] for part in parts]), weight)
    assert torch.equal(torch.cat([part[3] for part in parts]), classes)
