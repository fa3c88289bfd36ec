"""The step's switches away from the published method: what each trains, and that without them nothing changes."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_step import DRAWS, OFF, SHARES, batch, gradients, small_step, take, trained_parts, without_chance
from torch import Tensor
from torch.nn import functional as F

from icda.training.batch import Batch
from icda.training.dacs import DacsDraws, draw_dacs, mix
from icda.training.masking import draw_hidden
from icda.training.step import TrainStep

ALL = {"encoder", "head", "dar"}
SWITCHED = {
    "coupling_trains": "all",
    "pca_balanced": True,
    "pca_labels": "given",
    "masked": 1.0,
    "pseudo_label_weight": "image",
    "pseudo_label_threshold": 0.2,
}


def opinionated(method: TrainStep) -> TrainStep:
    """A student, and with its first step a teacher, that is surer of some pixels than of others."""
    torch.nn.init.normal_(method.student.head.classifier.weight, std=0.5)
    return method


def hiding(samples: Batch, share: float = 0.5) -> Tensor:
    return draw_hidden(np.random.default_rng(0), samples.source_label, 16, share)


def in_double(samples: Batch) -> Batch:
    return replace(samples, **{k: v.double() for k, v in vars(samples).items() if v.is_floating_point()})


@pytest.mark.parametrize(
    ("changes", "trains"),
    [
        ({"masked": 1.0, "pseudo_label_threshold": 0.05, "reference": 1e-30}, {"encoder", "head"}),
        ({"mix_reverse": 1.0, "pseudo_label_threshold": 0.05, "reference": 1e-30}, {"encoder", "head"}),
        ({"pca_space": "features", "pca_source": 1.0}, {"dar"}),
        ({"pca_space": "features", "pca_target": 1.0}, {"dar"}),
        ({"coupling_trains": "all", "reference": 1.0}, ALL),
        ({"coupling_trains": "all", "pca_source": 1.0}, ALL),
        ({"coupling_trains": "all", "pca_target": 1.0}, ALL),
    ],
)
def test_what_switched_terms_train(loss_config, changes, trains):
    loss = loss_config(**{**OFF, "source": 1e-30, **changes})
    method, samples = small_step(loss), batch(loss)
    if method.pca is not None:
        method.pca.prototypes.normal_()
    take(method, samples, 5, replace(DRAWS, hidden=hiding(samples), reverse=DacsDraws((0, 4, 9))))
    assert trained_parts(method) == trains


def test_without_switches_draws_terms_and_order_are_as_published(loss_config):
    plain, masked = (loss_config(masked=weight, pseudo_label_threshold=0.05) for weight in (0.0, 1.0))
    samples = batch(plain)
    ours, published = np.random.default_rng(7), np.random.default_rng(7)
    methods = [without_chance(small_step(loss)) for loss in (plain, masked)]
    draws = methods[0].draw(ours, samples)
    reference = bool(published.random() < 0.5)
    assert (draws.target_is_reference, draws.dacs) == (
        reference,
        draw_dacs(published, samples.source_label, (*range(19), 255), 0.8, 0.2, 0.5),
    )
    assert draws.hidden is None and ours.bit_generator.state == published.bit_generator.state
    with_hidden = methods[1].draw(np.random.default_rng(7), samples)
    assert replace(with_hidden, hidden=None) == draws
    assert torch.equal(with_hidden.hidden, draw_hidden(published, samples.source_label, 32, 0.7))
    terms = [take(method, samples, 0, d) for method, d in zip(methods, (draws, with_hidden), strict=True)]
    assert terms[1].pop("masked") > 0
    assert terms[0] == terms[1]


@pytest.mark.parametrize("coupling_trains", ["dar", "all"])
def test_images_enter_the_encoder_in_one_order(loss_config, coupling_trains):
    """Stochastic depth is drawn as they do."""
    loss = loss_config(coupling_trains=coupling_trains)
    method, samples, seen = small_step(loss), batch(loss), []
    method.student.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    take(method, samples, 0, DRAWS)
    expected = [samples.source, samples.enhanced, samples.target, samples.reference]
    assert len(seen) == 5 and [a is b for a, b in zip(seen, expected, strict=False)] == [True] * 4


@pytest.mark.parametrize("on_reference", [False, True])
def test_masked_without_mix_by_hand(loss_config, monkeypatch, on_reference):
    loss = loss_config(**{**OFF, "masked": 1.0}, pseudo_label_weight="probability")
    monkeypatch.setattr("icda.training.step.mix", None)  # is not called
    method, seen = opinionated(without_chance(small_step(loss))), []
    samples = batch(loss)
    hidden = hiding(samples)
    assert samples.enhanced is None and 0.2 < hidden.float().mean() < 0.8
    method.student.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    terms = take(method, samples, 0, replace(DRAWS, target_is_reference=on_reference, hidden=hidden))
    assert set(terms) == {"source", "masked", *SHARES}

    target = samples.reference if on_reference else samples.target
    image = torch.where(hidden.expand(-1, 3, -1, -1), torch.zeros(()), target)
    assert len(seen) == 2 and torch.equal(seen[1], image)
    with torch.no_grad():
        confidence, labels = (
            method.teacher_logits(target, None if on_reference else samples.reference).softmax(1).max(1)
        )
        logits = method.student.upsample(method.student.head(method.student.encoder(image)), image.shape[2:])
    confidence[:, :2], confidence[:, -2:] = 0, 0  # the border
    expected = (F.cross_entropy(logits, labels, reduction="none") * confidence).mean()
    torch.testing.assert_close(terms["masked"], expected)


def by_hand(method: TrainStep, samples: Batch, constant_day: bool) -> dict[str, Tensor]:
    """Gradients of the weighted sum of the three coupled terms, in one graph."""
    student, loss = method.student, method.loss

    def kept(maps):
        return [m.detach() for m in maps] if constant_day else maps

    def coupled(night, day):
        return student.upsample(student.head(student.dar(night, day)), samples.source.shape[2:])

    source, enhanced, target, reference = (
        student.encoder(image) for image in (samples.source, samples.enhanced, samples.target, samples.reference)
    )
    logits, labels = coupled(enhanced, kept(source)), samples.enhanced_label
    method.pca.update(logits, labels)
    total = loss.reference * F.cross_entropy(logits, labels, ignore_index=255, reduction="sum") / labels.numel()
    total = total + loss.pca_source * method.pca(logits)
    total = total + loss.pca_target * method.pca(coupled(target, kept(reference)))
    total.backward()
    return gradients(method)


def test_gradient_of_coupling_that_trains_all_is_that_of_the_weighted_sum(loss_config):
    weights = {"reference": 0.5, "pca_source": 20.0, "pca_target": 30.0}
    loss = loss_config(**{**OFF, **weights}, coupling_trains="all", pca_tau=0.5)
    method, samples = without_chance(small_step(loss)).double(), in_double(batch(loss, size=(64, 64)))
    with torch.no_grad():
        for p in method.student.dar.parameters():  # it starts where the day image hardly matters
            p.add_(0.05 * torch.randn_like(p))
    hand, moving = copy.deepcopy(method), copy.deepcopy(method)
    take(method, samples, 0, DRAWS)
    ours, expected = gradients(method), by_hand(hand, samples, constant_day=True)
    assert set(ours) >= set(expected) > {"encoder.patch_embed.proj.weight", "head.classifier.weight"}
    torch.testing.assert_close({name: ours[name] for name in expected}, expected, rtol=1e-6, atol=1e-10)
    name = "encoder.patch_embed.proj.weight"  # and day maps that were no constants would have shown
    other = by_hand(moving, samples, constant_day=False)[name]
    assert (ours[name] - other).norm() > 1e-3 * other.norm()


def test_low_memory_is_the_same_step_with_all_switches(loss_config):
    loss = loss_config(**SWITCHED)
    methods, samples = [small_step(loss, low_memory=low) for low in (False, True)], batch(loss)
    draws, terms = replace(DRAWS, hidden=hiding(samples)), []
    for method in methods:
        torch.manual_seed(0)  # dropout and stochastic depth are on
        terms.append(take(opinionated(method), samples, 0, draws))
    assert terms[0] == terms[1] and terms[0]["masked"] > 0
    ours, recomputed = map(gradients, methods)
    assert set(ours) == set(recomputed) == {n for n, _ in methods[0].student.named_parameters()}
    assert all(torch.equal(ours[name], recomputed[name]) for name in ours)
    states = [method.state_dict() for method in methods]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("pca_labels", ["own", "given"])
def test_the_source_pair_is_pulled_to_its_own_classes_or_the_true_ones(loss_config, pca_labels):
    loss = loss_config(**{**OFF, "pca_source": 1.0, "pca_target": 1.0}, pca_labels=pca_labels, pca_balanced=True)
    method, samples, seen = small_step(loss), batch(loss), []
    assert method.pca.balanced
    method.pca.register_forward_pre_hook(lambda _, args: seen.append(args))
    take(method, samples, 0, DRAWS)
    (source, labels), (target, of_target) = seen
    assert torch.equal(labels, samples.enhanced_label if pca_labels == "given" else source.argmax(1))
    assert torch.equal(of_target, target.argmax(1))  # the target has no labels


def test_statistics_of_the_night_are_those_of_night_images_alone(loss_config):
    loss = loss_config(**{**OFF, "source": 1.0, "enhanced": 1.0, "mix": 1.0}, statistics="night")
    method, samples = without_chance(small_step(loss)), batch(loss)
    plain = copy.deepcopy(method)
    plain.loss = replace(loss, statistics="all")
    before = {n: b.clone() for n, b in method.student.named_buffers()}
    expected = copy.deepcopy(method.student)
    expected(samples.target)  # in training mode: the night image's statistics, once
    take(method, samples, 3, DRAWS)
    take(plain, samples, 3, DRAWS)
    moved = [n for n, b in method.student.named_buffers() if not torch.equal(b, before[n])]
    assert any(n.endswith("running_mean") for n in moved) and any(n.endswith("running_var") for n in moved)
    for (name, ours), theirs in zip(method.student.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda m, n=name: f"{n}: {m}")
    for name, gradient in gradients(method).items():  # the step itself is the same
        assert torch.equal(gradient, gradients(plain)[name]), name
    assert method.student.training


def test_statistics_of_the_night_do_without_a_teacher(loss_config):
    loss = loss_config(**{**OFF, "source": 1.0}, statistics="night")
    method, samples = small_step(loss), batch(loss)
    assert loss.needs_target and samples.target is not None and method.teacher is None
    take(method, samples, 0, DRAWS)
    assert method.student.head.bottleneck[1].num_batches_tracked == 1


@pytest.mark.parametrize("mix_source", ["plain", "enhanced"])
def test_what_is_pasted_comes_from_the_plain_source_or_its_twin(loss_config, monkeypatch, mix_source):
    loss = loss_config(**{**OFF, "source": 1.0, "mix": 1.0}, mix_source=mix_source)
    method, samples = small_step(loss), batch(loss)
    assert loss.needs_enhanced == (mix_source == "enhanced")
    seen = []
    monkeypatch.setattr("icda.training.step.mix", lambda *args: seen.append(mix(*args)) or seen[0])
    take(method, samples, 5, DRAWS)
    (image, labels, weight), ids = seen[0], DRAWS.dacs.classes
    source, label = (
        (samples.source, samples.source_label)
        if mix_source == "plain"
        else (samples.enhanced, samples.enhanced_label)
    )
    pasted = torch.isin(label, torch.tensor(ids))
    assert pasted.any() and not pasted.all()
    expected = torch.where(pasted[:, None], source, samples.target)
    torch.testing.assert_close(image, expected)
    assert torch.equal(labels[pasted], label[pasted]) and (weight[pasted] == 1).all()


def test_a_twin_that_is_only_pasted_is_not_encoded(loss_config, monkeypatch):
    loss = loss_config(**{**OFF, "source": 1.0, "mix": 1.0}, mix_source="enhanced")
    method, samples = small_step(loss), batch(loss)
    seen = []
    encode = method.student.encoder.forward
    monkeypatch.setattr(method.student.encoder, "forward", lambda image: seen.append(image) or encode(image))
    take(method, samples, 5, DRAWS)
    assert len(seen) == 2 and seen[0] is samples.source  # and the mix


def test_the_reverse_mix_pastes_pseudo_labelled_classes_of_the_target_over_the_plain_source(loss_config, monkeypatch):
    loss = loss_config(
        **{**OFF, "source": 1.0, "mix_reverse": 1.0}, mix_source="enhanced", pseudo_label_weight="probability"
    )
    method, seen = opinionated(without_chance(small_step(loss))), []
    samples = batch(loss)
    assert samples.enhanced is None
    monkeypatch.setattr("icda.training.step.mix", lambda *args: seen.append(mix(*args)) or seen[0])
    ids = tuple(range(0, 19, 2))
    terms = take(method, samples, 0, replace(DRAWS, reverse=DacsDraws(ids)))
    assert set(terms) == {"source", "mix_reverse", *SHARES}

    confidence, labels = method.teacher_logits(samples.target, samples.reference).softmax(1).max(1)
    confidence[:, :2], confidence[:, -2:] = 0, 0  # the border
    pasted = torch.isin(labels, torch.tensor(ids))
    assert pasted.any() and not pasted.all()
    image = torch.where(pasted[:, None], samples.target, samples.source)
    expected = image, torch.where(pasted, labels, samples.source_label), torch.where(pasted, confidence, 1.0)
    for ours, theirs in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        logits = method.student.upsample(method.student.head(method.student.encoder(image)), image.shape[2:])
    cost = F.cross_entropy(logits, expected[1], ignore_index=255, reduction="none") * expected[2]
    torch.testing.assert_close(terms["mix_reverse"], cost.mean())


def test_the_reverse_mix_is_drawn_after_all_else_from_half_of_the_classes(loss_config):
    plain, reverse = loss_config(), loss_config(mix_reverse=1.0)
    samples = batch(reverse)
    without, found = (
        [small_step(loss).draw(np.random.default_rng(seed), samples) for seed in range(50)]
        for loss in (plain, reverse)
    )
    assert [replace(d, reverse=None) for d in found] == without
    assert all(len(set(d.reverse.classes)) == 10 for d in found)
    assert {i for d in found for i in d.reverse.classes} == set(range(19))  # the ignored id is no pseudo label


@pytest.mark.parametrize("pca_labels", ["own", "given"])
def test_features_are_aligned_to_prototypes_of_features(loss_config, pca_labels):
    loss = loss_config(**{**OFF, "source": 1.0, "pca_source": 1.0}, pca_space="features", pca_labels=pca_labels)
    method, samples, seen = without_chance(small_step(loss)), batch(loss), []
    assert method.pca.prototypes.shape == (19, 16)  # channels of the head
    student, head = method.student, copy.deepcopy(method.student.head)
    student.dar.register_forward_hook(lambda *args: seen.append(args[2]))
    terms = take(method, samples, 0, DRAWS)
    with torch.no_grad():
        logits, features = head([m.detach() for m in seen[0]], with_features=True)
        torch.testing.assert_close(logits, head.classifier(features))
        own = F.interpolate(logits, samples.source.shape[2:], mode="bilinear").argmax(1)
    labels = samples.enhanced_label
    near = [F.interpolate(x[:, None].float(), features.shape[2:])[:, 0].long() for x in (labels, own)]
    assert near[0].shape == (2, 16, 24)
    for c in near[0].unique().tolist():
        if c != 255:
            mean = features.permute(0, 2, 3, 1)[near[0] == c].mean(0)
            torch.testing.assert_close(method.pca.prototypes[c], 0.9 * mean, rtol=1e-4, atol=1e-5)
    cosine = torch.einsum("bdhw,cd->bchw", F.normalize(features, dim=1), F.normalize(method.pca.prototypes, dim=1))
    pulled_to = near[0] if pca_labels == "given" else near[1]
    cost = F.cross_entropy(cosine / 50, pulled_to, ignore_index=255, reduction="none").mean()
    torch.testing.assert_close(terms["pca_source"], cost)


def test_a_teacher_with_the_students_statistics_segments_as_the_student_does(loss_config):
    loss = loss_config(teacher_statistics="student")
    method, samples = small_step(loss), batch(loss)
    for step in range(2):
        take(method, samples, step, DRAWS)
    method.teacher.update(method.student, 0)  # a copy
    method.student.eval()
    with torch.no_grad():
        expected = method.student.upsample(
            method.student.head(method.student.encoder(samples.target)), samples.target.shape[2:]
        )
    alone = method.teacher_logits(samples.target, None)
    torch.testing.assert_close(alone, expected)
    assert not any(m.training for m in method.teacher.modules() if m is not method.teacher)
    moved = method.student.head.bottleneck[1].running_mean
    assert moved.any() and torch.equal(method.teacher.model.head.bottleneck[1].running_mean, moved)
