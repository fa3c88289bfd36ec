"""The step beyond the published figures: which term trains which part, and which part is there at all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from icda.data.classes import CAMVID, CITYSCAPES
from icda.models import build_model
from icda.training.dacs import DacsDraws
from icda.training.step import Batch, Draws, TrainStep

TERMS = ("source", "feature_distance", "enhanced", "reference", "pca_source", "pca_target", "mix")
TRAINS = {
    "source": {"encoder", "head"},
    "feature_distance": {"encoder"},
    "enhanced": {"encoder", "head"},
    "reference": {"dar"},
    "pca_source": {"dar"},
    "pca_target": {"dar"},
    "mix": {"encoder", "head"},
}
OFF = dict.fromkeys(TERMS, 0.0)


def small_step(loss, classes=CITYSCAPES, encoder="mit_b0", **options) -> TrainStep:
    torch.manual_seed(0)
    student = build_model(
        encoder,
        len(classes),
        head_options={"channels": 16},
        dar_options={"mlp_ratio": 1},
        with_dar=loss.needs_dar,
    )
    return TrainStep(student, classes, loss, border=(2, 2), **options).train()


def batch(loss, classes=CITYSCAPES, size=(64, 96)) -> Batch:
    torch.manual_seed(1)

    def image():
        return torch.randn(2, 3, *size)

    def label():  # blocks of 32, some of them things
        cells = torch.randint(0, len(classes), (2, size[0] // 32, size[1] // 32))
        cells[:, 0, 0] = classes.things[0]
        out = cells.repeat_interleave(32, 1).repeat_interleave(32, 2)
        out[:, :3] = classes.ignore_index
        return out

    enhanced = {"enhanced": image(), "enhanced_label": label()} if loss.needs_enhanced else {}
    reference = {"reference": image()} if loss.needs_reference else {}
    target = {"target": image()} if loss.needs_target else {}
    return Batch(image(), label(), **enhanced, **reference, **target)


DRAWS = Draws(False, DacsDraws((0, 1, 6, 13)))


@pytest.mark.parametrize("term", TERMS)
def test_each_term_trains_its_parts_and_no_other(loss_config, term):
    loss = loss_config(**{**OFF, "source": 1e-30 if term != "source" else 1.0, term: 1.0})
    method = small_step(loss)
    if method.frozen is not None:
        with torch.no_grad():  # equal features would have no gradient
            method.frozen.patch_embed.proj.weight.add_(0.1)
    if method.pca is not None:
        method.pca.prototypes.normal_()
    method(batch(loss), 5, DRAWS)
    norms = Counter()
    for name, p in method.student.named_parameters():
        if p.grad is not None:
            norms[name.split(".")[0]] += p.grad.norm().item()
    assert {part for part, norm in norms.items() if norm > 1e-20} == TRAINS[term]


def test_gradient_is_that_of_the_weighted_sum(loss_config):
    weights = {"source": 0.5, "enhanced": 2.0, "reference": 3.0}
    loss = loss_config(**{**OFF, **weights})
    method, samples = small_step(loss), batch(loss)
    for module in method.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    method.student.head.dropout.p = 0.0
    method(samples, 0, DRAWS)
    ours = {n: p.grad.clone() for n, p in method.student.named_parameters() if p.grad is not None}
    method.zero_grad()
    total = 0
    backward = method.backward

    def collect(new, terms):
        nonlocal total
        total = total + sum(weights[name] * value for name, value in new.items())

    method.backward = collect
    method(samples, 0, DRAWS)
    total.backward()
    method.backward = backward
    for name, p in method.student.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(ours[name], p.grad, rtol=1e-4, atol=1e-6)


def test_source_only_has_nothing_else(loss_config):
    loss = loss_config(**{**OFF, "source": 1.0})
    method = small_step(loss)
    assert (method.teacher, method.frozen, method.pca, method.student.dar) == (None, None, None, None)
    assert set(method(batch(loss), 0, DRAWS)) == {"source"}


def test_dacs_has_a_teacher_without_dar_and_no_prototypes(loss_config):
    loss = loss_config(**{**OFF, "source": 1.0, "mix": 1.0}, pseudo_label_with_dar=False, reference_probability=0.0)
    method, samples = small_step(loss), batch(loss)
    assert (
        method.pca is None and method.student.dar is None and samples.enhanced is None and samples.reference is None
    )
    assert set(method(samples, 0, DRAWS)) == {"source", "mix", "pseudo_label_share"}


def test_all_terms_are_finite_and_reported(loss_config):
    loss = loss_config()
    terms = small_step(loss)(batch(loss), 0, DRAWS)
    assert set(terms) == {*TERMS, "pseudo_label_share"}
    assert all(value.isfinite() and not value.requires_grad for value in terms.values())


def test_every_parameter_gets_a_gradient(loss_config):
    loss = loss_config()
    method = small_step(loss)
    method(batch(loss), 0, DRAWS)
    assert [n for n, p in method.student.named_parameters() if p.grad is None] == []
    assert [n for n, p in method.named_parameters() if p.grad is not None and not n.startswith("student.")] == []


def test_without_pretrained_weights_there_is_no_feature_distance(loss_config):
    method = small_step(loss_config(), pretrained=False)
    assert method.frozen is None
    assert "feature_distance" not in method(batch(loss_config()), 0, DRAWS)


def test_the_frozen_encoder_stays_as_it_was(loss_config):
    loss = loss_config()
    method = small_step(loss).train()
    before = {n: p.clone() for n, p in method.frozen.state_dict().items()}
    method(batch(loss), 0, DRAWS)
    assert not any(m.training for m in method.frozen.modules())  # it has no batch norm
    for name, value in method.frozen.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_the_feature_distance_starts_at_zero_also_with_batch_norm_in_the_encoder(loss_config):
    loss = loss_config()
    method = small_step(loss, encoder="test_efficientnet")
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in method.student.encoder.modules())
    assert method(batch(loss), 0, DRAWS)["feature_distance"] == 0


def test_heads_of_other_label_spaces(loss_config):
    loss = loss_config()
    terms = small_step(loss, CAMVID)(batch(loss, CAMVID), 0, DRAWS)
    assert all(value.isfinite() for value in terms.values())


def test_pseudo_labels_come_from_the_reference_when_drawn(loss_config):
    loss = loss_config()
    method, samples = small_step(loss), batch(loss)
    _, image = method.pseudo_labels(samples, Draws(True, DRAWS.dacs))
    assert image is samples.reference
    pseudo, image = method.pseudo_labels(samples, Draws(False, DRAWS.dacs))
    assert image is samples.target
    with torch.no_grad():
        expected = method.teacher_logits(samples.target, samples.reference).argmax(1)
    assert (pseudo.labels == expected).float().mean() > 0.99


def test_everything_random_is_drawn_from_the_generator(loss_config):
    loss = loss_config()
    method, samples = small_step(loss), batch(loss)
    same = [method.draw(np.random.default_rng(3), samples) for _ in range(2)]
    assert same[0] == same[1]
    share = np.mean([method.draw(np.random.default_rng(i), samples).target_is_reference for i in range(400)])
    assert share == pytest.approx(0.5, abs=0.08)


def test_the_state_is_in_the_state_dict(loss_config):
    loss = loss_config()
    method = small_step(loss)
    method(batch(loss), 0, DRAWS)
    names = set(method.state_dict())
    assert "pca.prototypes" in names
    assert {n.split(".")[0] for n in names} == {"student", "teacher", "frozen", "pca"}
