"""Loss terms against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from ranks import on_ranks
from torch.nn import functional as F

from icda.distributed import rank, world_size
from icda.training.losses import cross_entropy, feature_distance, thing_cells


def test_cross_entropy_divides_by_all_pixels():
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]])  # two pixels, two classes
    labels = torch.tensor([[[0, 255]]])
    one = math.log(1 + math.exp(-2))
    assert cross_entropy(logits, labels, 255).item() == pytest.approx(one / 2, rel=1e-6)


def test_pixel_weight_multiplies_before_the_mean():
    logits, labels, weight = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5)), torch.rand(2, 4, 5)
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, labels, 255, weight), (each * weight).sum() / 40)


def test_only_ignored_pixels_cost_nothing():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 4, 4), 255), 255)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


@pytest.mark.parametrize(
    ("thing_pixels", "other", "expected"),
    [(768, 0, True), (767, 0, False), (1024, 0, True), (768, 255, True), (0, 255, False)],
)
def test_a_cell_needs_its_share_of_one_thing(thing_pixels, other, expected):
    labels = torch.full((1, 32 * 32), other)
    labels[:, :thing_pixels] = 11
    cells = thing_cells(labels.view(1, 32, 32), (1, 1), things=(6, 11), num_classes=19, min_share=0.75)
    assert cells.item() is expected


def test_two_things_do_not_add_up_and_stuff_does_not_count():
    labels = torch.zeros(1, 32, 96, dtype=torch.long)
    labels[:, :16, :32], labels[:, 16:, :32] = 11, 12  # half and half
    labels[:, :, 64:] = 13
    cells = thing_cells(labels, (1, 3), things=(11, 12, 13), num_classes=19, min_share=0.75)
    assert cells.tolist() == [[[False, False, True]]]


def test_distance_by_hand():
    features, frozen = torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)
    features[0, :, 0, 0] = torch.tensor([3.0, 4.0])  # distance 5
    features[0, :, 0, 2] = torch.tensor([0.0, 1.0])  # distance 1
    cells = torch.tensor([[[True, True, False]]])
    assert feature_distance(features, frozen, cells).item() == pytest.approx(2.5)


def test_distance_is_zero_and_not_nan_without_a_thing():
    features = torch.randn(1, 2, 3, 3, requires_grad=True)
    loss = feature_distance(features, torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and features.grad.isfinite().all()


def test_gradient_is_finite_where_the_features_are_equal():
    features = torch.zeros(1, 2, 3, 3, requires_grad=True)
    feature_distance(features, torch.zeros(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.bool)).backward()
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(("given", "returned"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_terms_are_at_least_float32(given, returned):
    maps, cells = torch.randn(1, 2, 3, 3).to(given), torch.ones(1, 3, 3, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        assert cross_entropy(maps, torch.zeros(1, 3, 3, dtype=torch.long), 255).dtype == returned
        assert feature_distance(maps, -maps, cells).dtype == returned


def share_of_distance(features: torch.Tensor, frozen: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, ...]:
    own = slice(rank(), rank() + 1) if world_size() > 1 else slice(None)
    features = features[own].clone().requires_grad_()
    loss = feature_distance(features, frozen[own], cells[own])
    loss.backward()
    return loss.detach(), features.grad


@pytest.mark.slow
def test_average_over_processes_is_the_distance_of_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    features, frozen = torch.randn(2, 2, 4, 5, 5, dtype=torch.float64)
    cells = torch.zeros(2, 5, 5, dtype=torch.bool)
    cells[0, :3], cells[1, 0, 0] = True, True
    loss, gradient = share_of_distance(features, frozen, cells)
    parts = on_ranks(share_of_distance, 2, tmp_path, features, frozen, cells)
    assert sum(part[0] for part in parts).item() / 2 == pytest.approx(loss.item())
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / 2, gradient)
