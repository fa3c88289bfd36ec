"""The step beyond the published figures: which term trains which part, and which part is there at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from icda.data.classes import CAMVID, CITYSCAPES
from icda.models import build_model
from icda.training.dacs import DacsDraws
from icda.training.optimizer import build_optimizer
from icda.training.precision import Precision
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


def batch(loss, classes=CITYSCAPES, size=(64, 96), seed=1) -> Batch:
    torch.manual_seed(seed)

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
SHARES = {"pseudo_label_share", "pseudo_label_confidence"}


def take(method: TrainStep, *args: Any, **options: Any) -> dict[str, Tensor]:
    """A step up to the optimiser's; the terms."""
    rest, terms = method(*args, **options)
    method.finish(rest)
    return terms


def gradients(method: TrainStep) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in method.student.named_parameters() if p.grad is not None}


def trained_parts(method: TrainStep) -> set[str]:
    """Parts of the student that got more than a trace of a gradient."""
    norms = Counter()
    for name, p in method.student.named_parameters():
        if p.grad is not None:
            norms[name.split(".")[0]] += p.grad.norm().item()
    return {part for part, norm in norms.items() if norm > 1e-20}


def without_chance(method: TrainStep) -> TrainStep:
    for module in method.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return method


@pytest.mark.parametrize("term", TERMS)
def test_each_term_trains_its_parts_and_no_other(loss_config, term):
    loss = loss_config(**{**OFF, "source": 1e-30 if term != "source" else 1.0, term: 1.0})
    method = small_step(loss)
    if method.frozen is not None:
        with torch.no_grad():  # equal features would have no gradient
            method.frozen.patch_embed.proj.weight.add_(0.1)
    if method.pca is not None:
        method.pca.prototypes.normal_()
    take(method, batch(loss), 5, DRAWS)
    assert trained_parts(method) == TRAINS[term]


def test_gradient_is_that_of_the_weighted_sum(loss_config):
    weights = {"source": 0.5, "enhanced": 2.0, "reference": 3.0}
    loss = loss_config(**{**OFF, **weights})
    method, samples = without_chance(small_step(loss)), batch(loss)
    take(method, samples, 0, DRAWS)
    ours = gradients(method)
    method.zero_grad()
    total = 0
    backward = method.backward

    def collect(new, terms, scale):
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
    assert set(take(method, batch(loss), 0, DRAWS)) == {"source"}


def test_dacs_has_a_teacher_without_dar_and_no_prototypes(loss_config):
    loss = loss_config(**{**OFF, "source": 1.0, "mix": 1.0}, pseudo_label_with_dar=False, reference_probability=0.0)
    method, samples = small_step(loss), batch(loss)
    assert (
        method.pca is None and method.student.dar is None and samples.enhanced is None and samples.reference is None
    )
    assert set(take(method, samples, 0, DRAWS)) == {"source", "mix", *SHARES}


def test_all_terms_are_finite_and_reported(loss_config):
    loss = loss_config()
    terms = take(small_step(loss), batch(loss), 0, DRAWS)
    assert set(terms) == {*TERMS, *SHARES}
    assert 1 / len(CITYSCAPES) < terms["pseudo_label_confidence"] < 1
    assert all(value.isfinite() and not value.requires_grad for value in terms.values())


def test_every_parameter_gets_a_gradient(loss_config):
    loss = loss_config()
    method = small_step(loss)
    take(method, batch(loss), 0, DRAWS)
    assert [n for n, p in method.student.named_parameters() if p.grad is None] == []
    assert [n for n, p in method.named_parameters() if p.grad is not None and not n.startswith("student.")] == []


def test_without_pretrained_weights_there_is_no_feature_distance(loss_config):
    method = small_step(loss_config(), pretrained=False)
    assert method.frozen is None
    assert "feature_distance" not in take(method, batch(loss_config()), 0, DRAWS)


def test_the_frozen_encoder_stays_as_it_was(loss_config):
    loss = loss_config()
    method = small_step(loss).train()
    before = {n: p.clone() for n, p in method.frozen.state_dict().items()}
    take(method, batch(loss), 0, DRAWS)
    assert not any(m.training for m in method.frozen.modules())  # it has no batch norm
    for name, value in method.frozen.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_the_feature_distance_starts_at_zero_also_with_batch_norm_in_the_encoder(loss_config):
    loss = loss_config()
    method = small_step(loss, encoder="test_efficientnet")
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in method.student.encoder.modules())
    assert take(method, batch(loss), 0, DRAWS)["feature_distance"] == 0


def test_heads_of_other_label_spaces(loss_config):
    loss = loss_config()
    terms = take(small_step(loss, CAMVID), batch(loss, CAMVID), 0, DRAWS)
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
    take(method, batch(loss), 0, DRAWS)
    names = set(method.state_dict())
    assert "pca.prototypes" in names
    assert {n.split(".")[0] for n in names} == {"student", "teacher", "frozen", "pca"}


def test_the_last_branch_waits_for_finish(loss_config):
    """Its backward pass visits every parameter, DAR's and those of earlier branches among them."""
    loss = loss_config()
    method = small_step(loss)
    rest, _ = method(batch(loss), 0, DRAWS)
    before, visited = gradients(method), Counter()
    for name, p in method.student.named_parameters():
        p.register_post_accumulate_grad_hook(lambda _, name=name: visited.update([name]))
    expand = [(n, p.expand_as(p).grad_fn.next_functions[0][0]) for n, p in method.student.named_parameters()]
    for name, node in expand:  # where DistributedDataParallel hooks in
        node.register_hook(lambda *_, name=name: visited.update([f"node {name}"]))
    method.finish(rest)
    after = gradients(method)
    names = [name for name, _ in method.student.named_parameters()]
    assert {n for n in visited if n.startswith("node ")} == {f"node {n}" for n in names}
    for name in names:
        trained = not name.startswith("dar.")
        assert torch.equal(before[name], after[name]) is not trained


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_scale_multiplies_gradients_and_not_terms(loss_config, mix):
    loss = loss_config(mix=mix)
    methods = [without_chance(small_step(loss)) for _ in range(2)]
    terms = [take(m, batch(loss), 0, DRAWS, scale=scale) for m, scale in zip(methods, (1.0, 0.25), strict=True)]
    assert terms[0] == terms[1]
    ours, scaled = map(gradients, methods)
    assert all(torch.equal(ours[name] * 0.25, scaled[name]) for name in ours)


def test_only_the_first_pass_of_a_step_moves_the_teacher(loss_config):
    loss = loss_config()
    method = small_step(loss)
    with torch.no_grad():
        method.student.head.classifier.bias.fill_(3.0)
    take(method, batch(loss), 0, DRAWS, scale=0.5, first=False)
    assert not method.teacher.model.head.classifier.bias.any()
    take(method, batch(loss), 0, DRAWS, scale=0.5)
    assert (method.teacher.model.head.classifier.bias == 3).all()


def test_a_dar_that_the_teacher_alone_uses_takes_no_gradient(loss_config):
    loss = loss_config(reference=0.0, pca_source=0.0, pca_target=0.0)
    method = small_step(loss)
    before = {n: p.clone() for n, p in method.student.dar.state_dict().items()}
    take(method, batch(loss), 0, DRAWS)
    assert not any(p.requires_grad or p.grad is not None for p in method.student.dar.parameters())
    optimizer = build_optimizer(method.student, 1.0, 1.0, 1.0, weight_decay=0.5)
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in method.student.dar.state_dict().items())
    assert all(p.requires_grad for p in small_step(loss_config()).student.dar.parameters())


@pytest.mark.parametrize("encoder", ["mit_b0", "test_efficientnet"])
def test_low_memory_is_the_same_step(loss_config, encoder):
    loss = loss_config(pseudo_label_threshold=0.06)
    normal, low = (small_step(loss, encoder=encoder, low_memory=low_memory) for low_memory in (False, True))
    for step in range(2):
        terms = []
        for method in (normal, low):
            torch.manual_seed(step)  # dropout and stochastic depth are on
            terms.append(take(method, batch(loss), step, DRAWS))
        assert terms[0] == terms[1]
    ours, recomputed = gradients(normal), gradients(low)
    assert set(ours) == set(recomputed) == {n for n, _ in normal.student.named_parameters()}
    assert all(torch.equal(ours[name], recomputed[name]) for name in ours)
    states = normal.state_dict(), low.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for norm in ("branches.1.0.1", "bottleneck.1"):
        assert states[0][f"student.head.{norm}.num_batches_tracked"] == 2 * 5  # S, E, F~_E, F~_T, mixed


def test_a_step_is_what_it_is_with_nothing_computed_again(loss_config):
    loss = loss_config(pseudo_label_threshold=0.06)
    plain, ours = (without_chance(small_step(loss)).double() for _ in range(2))
    plain.student.head.recompute = None
    pairs = batch(loss)
    exact = replace(
        pairs, **{k: v.double() for k, v in vars(pairs).items() if v is not None and v.is_floating_point()}
    )
    terms = [take(method, exact, 0, DRAWS) for method in (plain, ours)]
    torch.testing.assert_close(*terms, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients(plain), gradients(ours), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(plain.state_dict(), ours.state_dict(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("low_memory", "may_stay"), [(False, 2**30), (True, 0)])
def test_free_memory_is_given_back(loss_config, low_memory, may_stay, monkeypatch):
    calls = []
    monkeypatch.setattr("icda.training.step.return_freed_memory", lambda above: calls.append(above))
    take(small_step(loss_config(), low_memory=low_memory), batch(loss_config()), 0, DRAWS)
    assert calls == [may_stay] * (5 + 1)  # before each branch's backward pass, and at the end


@pytest.mark.parametrize("low_memory", [False, True])
def test_mixed_precision_stays_out_of_terms_gradients_and_prototypes(loss_config, low_memory):
    loss = loss_config()
    exact, mixed = (without_chance(small_step(loss, low_memory=low_memory)) for _ in range(2))
    expected = take(exact, batch(loss), 0, DRAWS)
    with Precision("bf16", torch.device("cpu")).autocast():
        maps = mixed.student.encoder(batch(loss).source)
        assert mixed.student.head(maps).dtype == torch.bfloat16
        rest, terms = mixed(batch(loss), 0, DRAWS)
    mixed.finish(rest)
    assert all(value.dtype == torch.float32 for value in terms.values())
    assert mixed.pca.prototypes.dtype == torch.float32
    for name, value in terms.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=0.05, abs=0.2)
    ours, others = gradients(exact), gradients(mixed)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in others.values())
    total = [torch.cat([g[name].flatten() for name in ours]) for g in (ours, others)]
    assert torch.nn.functional.cosine_similarity(*total, dim=0) > 0.98


@pytest.mark.parametrize("low_memory", [False, True])
def test_passes_without_gradients_may_be_in_bfloat16(loss_config, low_memory):
    loss = loss_config()
    exact, fast = (
        without_chance(small_step(loss, low_memory=low_memory, no_grad_dtype=dtype))
        for dtype in (None, torch.bfloat16)
    )
    seen = {}
    encoders = {"student": fast.student.encoder, "frozen": fast.frozen, "teacher": fast.teacher.model.encoder}
    for name, encoder in encoders.items():
        linear = next(m for m in encoder.modules() if isinstance(m, nn.Linear))
        linear.register_forward_hook(
            lambda m, args, out, name=name: seen.setdefault(name, []).append((out.dtype, out.requires_grad))
        )
    terms = [take(method, batch(loss), 0, DRAWS) for method in (exact, fast)]
    without = (torch.bfloat16, False)  # T and R, which DAR couples, between S, E and the mix
    with_gradients = (torch.float32, True)
    student = [call for call in seen["student"] if call != (torch.float32, False)]  # recomputed, in the first pass
    assert set(seen["frozen"]) == set(seen["teacher"]) == {without} and len(seen["teacher"]) == 2
    assert student.count(without) == 2 and student.count(with_gradients) >= (0 if low_memory else 3)
    for name in ("source", "enhanced", "reference", "pca_source"):  # no pass without gradients is part of these
        assert terms[1][name] == terms[0][name]
    for name, value in terms[0].items():
        assert terms[1][name].item() == pytest.approx(value.item(), rel=0.02, abs=0.2)
    ours, others = gradients(exact), gradients(fast)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in others.values())
    total = [torch.cat([g[name].flatten() for name in ours]) for g in (ours, others)]
    assert torch.nn.functional.cosine_similarity(*total, dim=0) > 0.98
    assert {b.dtype for b in fast.buffers() if b.is_floating_point()} == {torch.float32}


def test_double_precision_is_double_throughout(loss_config):
    loss = loss_config()
    method, samples = small_step(loss).double(), batch(loss)
    doubled = {name: value.double() for name, value in vars(samples).items() if not name.endswith("label")}
    terms = take(method, replace(samples, **doubled), 0, DRAWS)
    assert all(value.dtype == torch.float64 for value in terms.values())
    assert method.pca.prototypes.dtype == torch.float64
