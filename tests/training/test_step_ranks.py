"""The step in two processes against the step of one process with both batches joined."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from ranks import on_ranks
from test_step import batch, without_chance
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from icda.config import LossConfig
from icda.data.classes import CITYSCAPES
from icda.distributed import rank, world_size
from icda.models import build_model
from icda.training.optimizer import build_optimizer
from icda.training.step import Batch, TrainStep
from icda.training.sync_batch_norm import synchronise

STEPS, PASSES, PAIRS = 5, 2, 4  # pairs: in a pass, over all processes


def joined_batch(loss: LossConfig, number: int) -> Batch:
    """Four pairs of float64; things are on some of them alone."""
    parts = []
    for half in range(2):
        part = batch(loss, size=(64, 64), seed=10 * number + half)
        for label in (part.source_label, part.enhanced_label):
            if half:
                label[label == CITYSCAPES.things[0]] = 0
        parts.append(vars(part))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Batch(**{name: t if name.endswith("label") else t.double() for name, t in joined.items()})


def steps_on_ranks(
    encoder: str, loss: LossConfig, low_memory: bool
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Five steps of two passes; terms, and everything's state after them."""
    torch.manual_seed(0)
    options = {"head_options": {"channels": 16}, "dar_options": {"mlp_ratio": 1}, "with_dar": loss.needs_dar}
    student = build_model(encoder, len(CITYSCAPES), **options)
    nn.init.normal_(student.head.classifier.weight, std=0.5)  # so that the teacher is sure of some pixels
    student.encoder.unread = nn.Parameter(torch.ones(2, 2))
    student = synchronise(student, torch.device("cpu"))
    method = without_chance(TrainStep(student, CITYSCAPES, loss, border=(2, 2), low_memory=low_memory)).double()
    with torch.no_grad():  # so that features differ from the start
        for p in method.frozen.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    parallel = method.train()
    if world_size() > 1:
        parallel = DistributedDataParallel(method, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = build_optimizer(student, 1e-3, 1.0, 1.0, weight_decay=0.1)
    record = []
    for step in range(STEPS):
        for number in range(PASSES):
            samples = vars(joined_batch(loss, PASSES * step + number))
            share = PAIRS // world_size()
            own = Batch(**{name: t[rank() * share :][:share] for name, t in samples.items()})
            draws = method.draw(np.random.default_rng([step, number]), own)
            waits = world_size() > 1 and number < PASSES - 1
            with parallel.no_sync() if waits else nullcontext():
                rest, terms = parallel(own, step, draws, scale=1 / PASSES, first=number == 0)
                method.finish(rest)
            record.append({**terms, "reference drawn": torch.tensor(draws.target_is_reference)})
        record[-1]["norm"] = nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        assert student.encoder.unread.grad is None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return record, method.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "changes", "low_memory"),
    [
        ("test_efficientnet", {}, True),
        ("test_efficientnet", {"reference": 0.0, "pca_source": 0.0, "pca_target": 0.0}, True),
        (
            "test_efficientnet",
            {
                "coupling_trains": "all",
                "pca_balanced": True,
                "pca_labels": "given",
                "masked": 1.0,
                "pseudo_label_weight": "image",
            },
            False,
        ),
        (
            "test_efficientnet",
            {
                "statistics": "night",
                "mix_reverse": 1.0,
                "mix_classes": "rare",
                "mix_source": "enhanced",
                "pca_space": "features",
                "pseudo_label_weight": "probability",
            },
            False,
        ),
    ],
)
def test_two_processes_take_the_steps_of_one_with_the_joined_batch(
    loss_config, tmp_path, encoder, changes, low_memory
):
    loss = loss_config(pseudo_label_threshold=0.2, feature_distance=1.0, **changes)
    record, state = steps_on_ranks(encoder, loss, low_memory)
    parts = on_ranks(steps_on_ranks, 2, tmp_path, encoder, loss, low_memory, timeout=500)
    exact = {"rtol": 0, "atol": 1e-5}  # found: below 1e-12
    for terms, of_parts in zip(record, zip(*(part[0] for part in parts), strict=True), strict=True):
        for name, value in terms.items():
            for ours in of_parts:
                torch.testing.assert_close(ours[name], value, **exact, msg=lambda m, name=name: f"{name}: {m}")
    for name, value in state.items():
        for _, ours in parts:
            torch.testing.assert_close(ours[name], value, **exact, msg=lambda m, name=name: f"{name}: {m}")
    shares = [terms["pseudo_label_share"] for terms in record if "pseudo_label_share" in terms]
    assert all(0 < share < 1 for share in shares), shares
    assert all(terms["feature_distance"] > 0 for terms in record)
    assert state["student.encoder.unread"].eq(1).all()  # no weight decay
