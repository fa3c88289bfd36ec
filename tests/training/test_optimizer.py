"""Parameter groups and the learning rate."""

from __future__ import annotations

import pytest

from icda.models import build_model
from icda.training.optimizer import build_optimizer, lr_factor, set_lr


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 6e-10),
        (750, 6e-4 * (1 - 0.5 * (1 - 1e-6))),
        (1500, 6e-4),
        (20750, 3e-4),
        (39999, 6e-4 / 38500),
        (40000, 0),
    ],
)
def test_the_published_learning_rate_by_hand(step, lr):
    assert 6e-4 * lr_factor(step, 40000, 1500) == pytest.approx(lr, rel=1e-9)


def test_runs_shorter_than_their_warmup_and_without_one():
    assert lr_factor(3, 4, 10) == pytest.approx(0.3, rel=1e-4)
    assert lr_factor(0, 10, 0) == 1


def test_every_parameter_is_in_one_group_with_its_rate_and_decay():
    model = build_model("mit_b0", 5, head_options={"channels": 16})
    optimizer = build_optimizer(model, lr=1.0, encoder_lr_factor=0.1, dar_lr_factor=0.2, weight_decay=0.01)
    set_lr(optimizer, 0.5)
    found = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert p not in found
            found[p] = (group["lr"], group["weight_decay"])
    for part, lr in (("encoder", 0.05), ("head", 0.5), ("dar", 0.1)):
        for p in getattr(model, part).parameters():
            assert found[p] == (lr, 0.01 if p.ndim >= 2 else 0.0)
    assert len(found) == len(list(model.parameters()))


def test_a_table_of_positions_does_not_decay():
    options = {"position_table": True}
    model = build_model("mit_b0", 5, head_options={"channels": 16}, dar_options=options)
    decay = {
        p: group["weight_decay"]
        for group in build_optimizer(model, 1.0, 0.1, 0.1, 0.01).param_groups
        for p in group["params"]
    }
    tables = [p for n, p in model.dar.named_parameters() if "position_table" in n]
    assert len(tables) == 2 and all(decay[p] == 0 for p in tables)
    assert decay[model.dar.stages[0].layers[0].attention.qkv.weight] > 0
