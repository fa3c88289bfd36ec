"""Three training steps against the published implementation, figure by figure (method section 11)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from reference import recipe
from torch import Tensor, nn

from icda.data.classes import CITYSCAPES
from icda.interop import UNUSED, load_published
from icda.training.dacs import DacsDraws, Layer, mix
from icda.training.optimizer import build_optimizer
from icda.training.step import Batch, Draws, TrainStep

DIRECTORY = Path(__file__).parents[1] / "reference"
FIGURES = json.loads((DIRECTORY / "train_step_mit_b1.json").read_text())["steps"]
KEYS = json.loads((DIRECTORY / "checkpoint_keys_mit_b5.json").read_text())
NAMES = {
    "source": "train_loss_src",
    "feature_distance": "train_loss_featdist_src",
    "enhanced": "train_loss_enhance",
    "reference": "train_loss_ref",
    "pca_source": "train_source_prototype",
    "pca_target": "train_tgt_prototype",
    "mix": "train_loss_uda_trg",
}
PARTS = {"backbone": "encoder", "head": "head", "dat": "dar"}


def published_batch(step: int) -> Batch:
    shape = (2, 3, 128, 128)
    enhanced = recipe.image(f"pubstep.{step}.enh", shape)
    enhanced[..., -8:] = 0
    enhanced_label = recipe.labels(f"pubstep.{step}.labe", 2, 128, 128)
    enhanced_label[(enhanced == 0).all(1)] = 255
    return Batch(
        source=recipe.image(f"pubstep.{step}.src", shape),
        source_label=recipe.labels(f"pubstep.{step}.lab", 2, 128, 128),
        enhanced=enhanced,
        enhanced_label=enhanced_label,
        reference=recipe.image(f"pubstep.{step}.ref", shape),
        target=recipe.image(f"pubstep.{step}.trg", shape),
    )


def parameters(module: nn.Module) -> list[Tensor]:
    return [p.detach().double() for p in module.parameters()]


def unused_sum(published: dict[str, Tensor], part: str, power: int, dims: tuple[int, ...] = (1, 2, 3, 4)) -> float:
    """What the published model's parameters that nothing reads add to its sums; they are not in ours."""
    names = (n for n in published if n.startswith(part) and UNUSED.match(n) and "index" not in n)
    return sum((published[n].double() ** power).sum().item() for n in names if published[n].ndim in dims)


def grad_norm(module: nn.Module) -> float:
    return math.sqrt(sum(p.grad.double().square().sum().item() for p in module.parameters() if p.grad is not None))


def record_step(method: TrainStep, optimizer: torch.optim.Optimizer, step: int) -> dict[str, object]:
    """Run one step, recording what the figures list."""
    batch, record = published_batch(step), {}
    present = sorted(batch.source_label.unique().tolist())
    draws = Draws(False, DacsDraws(tuple(present[: math.ceil(len(present) / 2)])))

    backward, pseudo_labels = method.backward, method.pseudo_labels

    def recording_backward(new, terms, scale):
        for name in ("pca_source", "pca_target"):
            if name in new:
                dar = list(method.student.dar.parameters())
                with method.differentiating():
                    grads = torch.autograd.grad(new[name], dar, retain_graph=True)
                record[name] = math.sqrt(sum(g.double().square().sum().item() for g in grads))
        backward(new, terms, scale)

    def recording_pseudo_labels(batch, draws):
        pseudo, target = pseudo_labels(batch, draws)
        mean, std = method.student.mean, method.student.std
        layers = Layer(batch.source, batch.source_label), Layer(target, pseudo.labels, pseudo.weight)
        record["mix"] = mix(*layers, draws.dacs, mean, std)
        return pseudo, target

    method.backward, method.pseudo_labels = recording_backward, recording_pseudo_labels
    rest, terms = method(batch, step, draws)
    method.finish(rest)
    record["terms"] = {k: v.item() for k, v in terms.items()}
    record["grad_norm"] = {p: grad_norm(getattr(method.student, ours)) for p, ours in PARTS.items()}
    method.backward, method.pseudo_labels = backward, pseudo_labels
    optimizer.step()
    optimizer.zero_grad()
    return record


@pytest.fixture(scope="module")
def run(published_b1, loss_config):
    """Three steps; per step what was recorded and the sums of the state after it."""
    torch.manual_seed(0)
    student = load_published(published_b1)
    for module in student.modules():  # the figures were made without dropout and stochastic depth
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    method = TrainStep(student, CITYSCAPES, loss_config(pseudo_label_threshold=0.14))
    shapes = {n: s for n, s in recipe.published_shapes(KEYS).items() if n.startswith("backbone.")}
    frozen = recipe.state_dict(shapes, ("backbone.", "imnet."))
    rest = {n: t for n, t in published_b1.items() if not n.startswith("backbone.")}
    method.frozen.load_state_dict(load_published({**frozen, **rest}).encoder.state_dict())
    method.train()
    optimizer = build_optimizer(student, lr=6e-4, encoder_lr_factor=0.1, dar_lr_factor=0.1, weight_decay=0.01)
    records = []
    for step in range(3):
        record = record_step(method, optimizer, step)
        norms = [m for m in student.head.modules() if isinstance(m, nn.BatchNorm2d)]
        sums = {
            "prototypes": method.pca.prototypes.double().clone(),
            "student": {p: sum(t.sum().item() for t in parameters(getattr(student, o))) for p, o in PARTS.items()},
            "teacher": {
                p: sum(t.sum().item() for t in parameters(getattr(method.teacher.model, o))) for p, o in PARTS.items()
            },
            "squares": {
                p: [
                    sum(t.square().sum().item() for t in parameters(getattr(student, o)) if (t.ndim >= 2) == many)
                    for many in (True, False)
                ]
                for p, o in PARTS.items()
            },
            "running_mean": sum(m.running_mean.double().sum().item() for m in norms),
            "running_var": sum(m.running_var.double().sum().item() for m in norms),
        }
        records.append({**record, **sums})
    return records


steps = pytest.mark.parametrize("step", range(3))


@steps
@pytest.mark.parametrize("term", NAMES)
def test_losses(run, step, term):
    tolerance = 1e-5 if term.startswith("pca") else 5e-4
    factor = 0.005 if term == "feature_distance" else 1  # the figures list this term with its factor
    assert run[step]["terms"][term] * factor == pytest.approx(FIGURES[step]["losses"][NAMES[term]], abs=tolerance)


@steps
@pytest.mark.parametrize("part", PARTS)
def test_gradient_norms(run, step, part):
    assert run[step]["grad_norm"][part] == pytest.approx(FIGURES[step]["grad_norm"][part], rel=5e-3)


@steps
@pytest.mark.parametrize("term", ["source", "target"])
def test_gradient_norm_of_each_alignment_term(run, step, term):
    assert run[step][f"pca_{term}"] == pytest.approx(FIGURES[step]["dar_grad_norm_pca"][term], rel=5e-3)


@steps
def test_pseudo_label_share(run, step):
    assert run[step]["terms"]["pseudo_label_share"] == pytest.approx(FIGURES[step]["pseudo_label_share"], rel=1e-3)


@steps
def test_mix(run, step):
    image, labels, weight = run[step]["mix"]
    figures = FIGURES[step]["mix"]
    assert weight.double().sum().item() == pytest.approx(figures["weight_sum"], rel=1e-3)
    assert image.double().abs().sum().item() == pytest.approx(figures["image_abs_sum"], rel=1e-3)
    assert labels.sum().item() == pytest.approx(figures["label_sum"], rel=1e-3)


@steps
def test_prototypes(run, step):
    prototypes = run[step]["prototypes"]
    assert prototypes.sum().item() == pytest.approx(FIGURES[step]["prototype_sum"], rel=2e-3)
    assert prototypes.norm().item() == pytest.approx(FIGURES[step]["prototype_norm"], rel=2e-3)


@steps
@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("part", PARTS)
def test_parameter_sums(run, published_b1, step, who, part):
    ours = run[step][who][part] + unused_sum(published_b1, part, 1)
    assert ours == pytest.approx(FIGURES[step][f"{who}_sum"][part], abs=0.1)


@steps
@pytest.mark.parametrize("part", PARTS)
def test_sums_of_squares(run, published_b1, step, part):
    figures = FIGURES[step]["student_square_sum"][part]
    for ours, name, dims in zip(
        run[step]["squares"][part], ("two_or_more_dims", "fewer"), ((2, 3, 4), (1,)), strict=True
    ):
        assert ours + unused_sum(published_b1, part, 2, dims) == pytest.approx(figures[name], abs=0.02)


@steps
def test_running_statistics_of_the_head(run, step):
    figures = FIGURES[step]["head_running"]
    assert run[step]["running_mean"] == pytest.approx(figures["mean_sum"], abs=0.1)
    assert run[step]["running_var"] == pytest.approx(figures["var_sum"], rel=1e-4)
