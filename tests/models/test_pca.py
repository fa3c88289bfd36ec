"""Prototypes and the alignment loss against values computed by hand and in a loop."""

from __future__ import annotations

import math

import pytest
import torch
from ranks import on_ranks

from icda.distributed import rank, world_size
from icda.models import PCA


def test_prototypes_after_two_updates_by_hand():
    pca = PCA(2, momentum=0.9)
    logits = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])  # pixels (1, 0) and (3, 2)
    pca.update(logits, torch.tensor([[[0, 0]]]))
    torch.testing.assert_close(pca.prototypes, torch.tensor([[1.8, 0.9], [0.0, 0.0]]))
    pca.update(logits, torch.tensor([[[1, 0]]]))
    torch.testing.assert_close(pca.prototypes, torch.tensor([[0.9 * 3 + 0.18, 0.9 * 2 + 0.09], [0.9, 0.0]]))


def test_update_is_the_mean_over_labelled_pixels_of_the_whole_batch():
    torch.manual_seed(0)
    pca, logits, labels = PCA(4, momentum=1.0), torch.randn(3, 4, 6, 5), torch.randint(0, 3, (3, 6, 5))
    labels[torch.rand(labels.shape) < 0.3] = 255
    pca.update(logits, labels)
    for c in range(3):
        pixels = [logits[b, :, y, x] for b in range(3) for y in range(6) for x in range(5) if labels[b, y, x] == c]
        torch.testing.assert_close(pca.prototypes[c], torch.stack(pixels).mean(0))
    assert not pca.prototypes[3].any()  # absent


def test_only_ignored_pixels_change_nothing():
    pca = PCA(3)
    pca.update(torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255))
    assert not pca.prototypes.any()


def test_labels_of_another_size_are_brought_by_nearest_neighbour():
    logits = torch.zeros(1, 2, 4, 4)
    logits[..., 2:] = 1
    pca = PCA(2, momentum=1.0)
    pca.update(logits, torch.tensor([[[0, 1], [0, 1]]]))
    torch.testing.assert_close(pca.prototypes, torch.tensor([[0.0, 0.0], [1.0, 1.0]]))


def test_loss_in_a_loop():
    torch.manual_seed(1)
    pca, logits = PCA(3, tau=0.5), torch.randn(2, 3, 2, 2)
    pca.prototypes.copy_(torch.randn(3, 3))
    total = 0.0
    for b in range(2):
        for y in range(2):
            for x in range(2):
                pixel = logits[b, :, y, x]
                similarity = [
                    torch.dot(pixel, p).item() / (pixel.norm() * p.norm()).item() / 0.5 for p in pca.prototypes
                ]
                label = pixel.argmax().item()
                total -= similarity[label] - math.log(sum(math.exp(s) for s in similarity))
    assert pca(logits).item() == pytest.approx(total / 8, rel=1e-5)


def cost_of(pixel: torch.Tensor, label: int, pca: PCA) -> float:
    """What one pixel's alignment to one class costs."""
    similarity = [torch.dot(pixel, p).item() / (pixel.norm() * p.norm()).item() / pca.tau for p in pca.prototypes]
    return math.log(sum(math.exp(s) for s in similarity)) - similarity[label]


@pytest.mark.parametrize("given", [False, True])
def test_balanced_loss_is_the_mean_over_classes_of_the_mean_over_their_pixels(given):
    torch.manual_seed(2)
    pca, logits = PCA(4, tau=0.5, balanced=True), torch.randn(2, 4, 5, 6)
    pca.prototypes.copy_(torch.randn(4, 4))
    logits[:, 3] = -9  # the own argmax is never class 3
    logits[0, 0] += 3  # and most often class 0
    labels = logits.argmax(1)
    if given:
        labels = torch.randint(0, 2, (2, 5, 6)) * 3  # classes 0 and 3
        labels[0, :, :4], labels[1, 0] = 255, 255
    costs: dict[int, list[float]] = {}
    for b in range(2):
        for y in range(5):
            for x in range(6):
                if (label := labels[b, y, x].item()) != 255:
                    costs.setdefault(label, []).append(cost_of(logits[b, :, y, x], label, pca))
    assert set(costs) == ({0, 3} if given else {0, 1, 2}) and len({len(of_class) for of_class in costs.values()}) > 1
    expected = sum(sum(of_class) / len(of_class) for of_class in costs.values()) / len(costs)
    assert pca(logits, labels if given else None).item() == pytest.approx(expected, rel=1e-5)


def test_balanced_loss_does_not_see_how_often_a_class_occurs():
    torch.manual_seed(3)
    pca, logits, labels = PCA(3, balanced=True), torch.randn(1, 3, 1, 4), torch.tensor([[[0, 1, 1, 2]]])
    pca.prototypes.copy_(torch.randn(3, 3))
    more = torch.tensor([0, 0, 0, 0, 1, 2, 3, 3])  # each of a class's pixels as often as its others
    torch.testing.assert_close(pca(logits, labels), pca(logits[..., more], labels[..., more]))


@pytest.mark.parametrize("balanced", [False, True])
def test_only_ignored_pixels_cost_nothing(balanced):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = PCA(3, balanced=balanced)(logits, torch.full((1, 4, 4), 255))
    loss.backward()
    assert loss == 0 and not logits.grad.any()


def test_given_labels_by_hand():
    pca = PCA(2, tau=1.0)
    pca.prototypes.copy_(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
    logits = torch.tensor([[[[3.0, 1.0, 4.0, 7.0]], [[0.0, 0.0, 0.0, 0.0]]]])  # similarities 1 and 0 at each pixel
    pulled_to_0, pulled_to_1 = math.log(1 + math.exp(-1)), math.log(1 + math.e)
    labels = torch.tensor([[[0, 1, 255, 1]]])
    assert pca(logits, labels).item() == pytest.approx((pulled_to_0 + 2 * pulled_to_1) / 4)
    pca.balanced = True
    assert pca(logits, labels).item() == pytest.approx((pulled_to_0 + pulled_to_1) / 2)


def test_without_labels_it_is_the_own_argmax():
    torch.manual_seed(4)
    pca, logits = PCA(3), torch.randn(2, 3, 5, 5)
    pca.prototypes.copy_(torch.randn(3, 3))
    assert not pca.balanced
    assert pca(logits) == pca(logits, logits.argmax(1)) != pca(logits, logits.argmin(1))


def test_loss_without_prototypes_is_that_of_a_blind_guess():
    assert PCA(19)(torch.randn(1, 19, 3, 3)).item() == pytest.approx(math.log(19), rel=1e-6)


def test_gradient_reaches_logits_and_not_prototypes():
    pca, logits = PCA(3), torch.randn(1, 3, 4, 4, requires_grad=True)
    pca.update(logits, torch.randint(0, 3, (1, 4, 4)))
    pca(logits).backward()
    assert logits.grad.abs().sum() > 0
    assert not pca.prototypes.requires_grad


def test_prototypes_are_saved_and_move_with_the_module():
    pca = PCA(3)
    pca.update(torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4)))
    copy = PCA(3)
    copy.load_state_dict(pca.state_dict())
    torch.testing.assert_close(copy.prototypes, pca.prototypes)
    assert pca.to("meta").prototypes.device.type == "meta"


def test_half_precision_stays_outside():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 3, 6, 6).bfloat16(), torch.randint(0, 3, (1, 6, 6))
    pca, exact = PCA(3), PCA(3)
    with torch.autocast("cpu", torch.bfloat16):
        pca.update(logits, labels)
        loss = pca(logits)
    exact.update(logits.float(), labels)
    assert pca.prototypes.dtype == loss.dtype == torch.float32
    assert torch.equal(pca.prototypes, exact.prototypes)
    assert loss.item() == exact(logits.float()).item()


def test_double_precision_stays_double():
    pca = PCA(3).double()
    pca.update(torch.randn(1, 3, 6, 6).double(), torch.randint(0, 3, (1, 6, 6)))
    assert pca.prototypes.dtype == pca(torch.randn(1, 3, 4, 4).double()).dtype == torch.float64


def share_of_update(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    own = slice(rank(), rank() + 1) if world_size() > 1 else slice(None)
    pca = PCA(4).double()
    for _ in range(2):
        pca.update(logits[own], labels[own])
    return pca.prototypes


@pytest.mark.slow
def test_prototypes_of_two_processes_are_those_of_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randint(0, 2, (2, 5, 6))
    labels[0, :2], labels[1, 0, 0] = 255, 2  # class 2 is on one process, class 3 on none
    whole, parts = share_of_update(logits, labels), on_ranks(share_of_update, 2, tmp_path, logits, labels)
    assert torch.equal(*parts)
    torch.testing.assert_close(parts[0], whole)
    assert whole[2].any() and not whole[3].any()


def share_of_balanced_loss(logits: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Loss and gradient with labels given, and with none."""
    own = slice(rank(), rank() + 1) if world_size() > 1 else slice(None)
    found = []
    for known in (labels[own], None):
        torch.manual_seed(0)
        pca, x = PCA(4, tau=0.5, balanced=True).double(), logits[own].clone().requires_grad_()
        pca.prototypes.copy_(torch.randn(4, 4))
        loss = pca(x, known)
        loss.backward()
        found.append((loss.detach(), x.grad))
    return found


@pytest.mark.slow
def test_balanced_loss_of_two_processes_is_that_of_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randint(0, 2, (2, 5, 6))
    labels[0, :3], labels[1, 0, 0] = 255, 2  # class 2 is on one process, class 3 on none
    wholes, parts = (
        share_of_balanced_loss(logits, labels),
        on_ranks(share_of_balanced_loss, 2, tmp_path, logits, labels),
    )
    for whole, *of_ranks in zip(wholes, *parts, strict=True):
        # Both are averaged over processes: the loss for the record, the gradient by DistributedDataParallel.
        torch.testing.assert_close(sum(loss for loss, _ in of_ranks) / 2, whole[0])
        torch.testing.assert_close(torch.cat([gradient for _, gradient in of_ranks]) / 2, whole[1])
