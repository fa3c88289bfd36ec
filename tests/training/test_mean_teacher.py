"""The mean teacher: its average to the digit, what is off in it, what it keeps for itself."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from icda.models import build_model
from icda.training.mean_teacher import MeanTeacher


def model() -> nn.Module:
    return build_model("mit_b0", 5, head_options={"channels": 16}, dar_options={"mlp_ratio": 1})


def set_all(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(value)


def test_average_after_three_updates_by_hand():
    student = nn.Linear(2, 2)
    teacher = MeanTeacher(student, momentum=0.6)
    for step, (value, expected) in enumerate([(1.0, 1.0), (3.0, 2.0), (5.0, 0.6 * 2 + 0.4 * 5)]):  # m = 0, 0.5, 0.6
        set_all(student, value)
        teacher.update(student, step)
        assert all(torch.allclose(p, torch.tensor(expected)) for p in teacher.model.parameters())


def test_decay_is_capped():
    teacher = MeanTeacher(nn.Linear(1, 1), momentum=0.999)
    assert teacher.decay(0) == 0
    assert teacher.decay(9) == pytest.approx(0.9)
    assert teacher.decay(10**6) == 0.999


def test_buffers_are_the_teachers_own():
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    teacher = MeanTeacher(student)
    student.train()(torch.randn(4, 3, 8, 8) + 5)
    before = copy.deepcopy(dict(teacher.model.named_buffers()))
    teacher.update(student, 3)
    for name, value in teacher.model.named_buffers():
        torch.testing.assert_close(value, before[name])


def test_the_students_statistics_are_taken_over_with_each_update():
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    teacher = MeanTeacher(student, statistics="student")
    for mode in (True, False):
        assert not any(part.training for part in teacher.train(mode).model.modules())
    student.train()(torch.randn(4, 3, 8, 8) + 5)
    teacher.model(torch.randn(4, 3, 8, 8) - 7)  # moves nothing
    teacher.update(student, 3)
    assert student[1].running_mean.any() and student[1].num_batches_tracked == 1
    for name, value in teacher.model.named_buffers():
        assert torch.equal(value, student.get_buffer(name))


@pytest.mark.parametrize("mode", [True, False])
def test_no_dropout_in_either_mode_and_batch_norm_on_the_batch(mode):
    teacher = MeanTeacher(model()).train(mode)
    for module in teacher.model.modules():
        if isinstance(module, DropPath | nn.Dropout | nn.Dropout2d):
            assert not module.training
        if isinstance(module, nn.BatchNorm2d):
            assert module.training
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(teacher.model(x), teacher.model(x))
        maps = teacher.model.encoder(x)
        torch.testing.assert_close(teacher.model.dar(maps, maps)[3], teacher.model.dar(maps, maps)[3])


def test_batch_norm_uses_the_statistics_of_the_batch():
    student = nn.BatchNorm2d(3, affine=False)
    student.running_mean.fill_(100)
    out = MeanTeacher(student).model(torch.randn(4, 3, 16, 16) * 7 + 3)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_a_parent_in_training_mode_does_not_wake_its_dropout():
    parent = nn.Module()
    parent.teacher = MeanTeacher(model())
    parent.train()
    assert not any(m.training for m in parent.teacher.model.modules() if isinstance(m, nn.Dropout2d | DropPath))


def test_no_gradient_reaches_it():
    assert not any(p.requires_grad for p in MeanTeacher(model()).parameters())
