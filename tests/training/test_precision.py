"""Mixed precision: what stays float32, how near a bfloat16 step lies, and what a device is refused."""

from __future__ import annotations

import math
from contextlib import nullcontext

import pytest
import torch
from test_step import DRAWS, batch, small_step
from torch import nn

from icda.errors import UserError
from icda.models.dar import DAR, DeformableAttention
from icda.training import precision
from icda.training.precision import Precision, at_least_float32

CPU = torch.device("cpu")


def taken(loss, context):
    """A step in a context: the method, its terms and the student's gradients."""
    method = small_step(loss)
    torch.manual_seed(2)
    with torch.no_grad():
        for p in method.frozen.parameters():  # equal features would have no distance
            p.mul_(1.05)
        method.pca.prototypes.normal_()
    torch.manual_seed(3)
    with context:
        rest, terms = method(batch(loss), 5, DRAWS)
    method.finish(rest)
    return method, terms, {name: p.grad for name, p in method.student.named_parameters()}


@pytest.fixture(scope="module")
def plain(loss_config):
    return taken(loss_config(), nullcontext())


@pytest.fixture(scope="module")
def mixed(loss_config):
    return taken(loss_config(), Precision("bf16", CPU).autocast())


def test_fp32_changes_nothing(plain, loss_config):
    _, terms, gradients = taken(loss_config(), Precision("fp32", CPU).autocast())
    assert all(torch.equal(terms[n], plain[1][n]) for n in plain[1])
    assert all(torch.equal(gradients[n], plain[2][n]) for n in plain[2])


def test_bf16_computes_in_bfloat16_and_keeps_float32(mixed):
    method, terms, gradients = mixed
    with Precision("bf16", CPU).autocast():
        maps = method.student.encoder(torch.randn(1, 3, 64, 96))
        assert method.student.head(maps).dtype == torch.bfloat16
    assert {t.dtype for t in terms.values()} == {torch.float32}
    assert {p.dtype for p in method.parameters()} == {torch.float32}  # the teacher's running average among them
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert {b.dtype for b in method.buffers() if b.is_floating_point()} == {torch.float32}


def test_terms_of_bf16_lie_near_those_of_fp32(plain, mixed):
    # A number of 8 significant bits is off by up to 2^-9 of itself. Logits of a new network stay below 1, so cross
    # entropies may not be off by more than 2^-8 altogether; measured were 2e-5.
    for name in ("source", "enhanced", "reference", "pca_source", "pca_target", "mix"):
        assert mixed[1][name].item() == pytest.approx(plain[1][name].item(), abs=2**-8)
    # A distance between features is off by a share of the features' length, which after the encoder's last layer
    # norm is the root of their number.
    length = math.sqrt(mixed[0].student.encoder.feature_info.channels()[-1])
    distance = [terms["feature_distance"].item() for _, terms, _ in (plain, mixed)]
    assert distance[0] > 0.1 and distance[1] == pytest.approx(distance[0], abs=2**-8 * length)


@pytest.mark.parametrize(("part", "error"), [("encoder", 0.2), ("head", 2**-5), ("dar", 0.1)])
def test_gradients_of_bf16_point_the_same_way(plain, mixed, part, error):
    # The error adds up over the layers that a gradient passes: few in the head, nine blocks in the encoder.
    exact, rounded = (
        torch.cat([g.flatten() for name, g in gradients.items() if name.startswith(part)])
        for _, _, gradients in (plain, mixed)
    )
    assert (rounded - exact).norm() < error * exact.norm()


def test_a_weight_first_used_without_gradients_gets_one(plain):
    layer = nn.Linear(4, 4)
    with Precision("bf16", CPU).autocast():
        assert not torch.is_autocast_cache_enabled()
        with torch.no_grad():
            layer(torch.ones(2, 4))
        total = layer(torch.ones(2, 4)).sum()
    total.backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sampling_positions_are_never_rounded_to_half_precision(dtype):
    attention = DeformableAttention(32, heads=4, groups=4, kernel=3, offset_range=2.0).to(dtype)
    nn.init.zeros_(attention.offset_head[-1].weight)  # the cell centres alone
    height, width = 37, 51
    grid = attention.positions(torch.randn(8, 8, height, width, dtype=dtype))
    assert grid.dtype == torch.promote_types(dtype, torch.float32)
    rows, columns = ((2 * torch.arange(n, dtype=torch.float64) + 1) / n - 1 for n in (height, width))
    torch.testing.assert_close(grid[3, :, 7, 0].double(), rows, rtol=0, atol=1e-6)
    torch.testing.assert_close(grid[5, 11, :, 1].double(), columns, rtol=0, atol=1e-6)


def test_sampling_positions_under_autocast():
    torch.manual_seed(0)
    attention = DeformableAttention(32, heads=4, groups=4, kernel=3, offset_range=2.0)
    joint = torch.randn(8, 8, 32, 64)
    exact = attention.positions(joint)
    with Precision("bf16", CPU).autocast():
        grid = attention.positions(joint)
    cells = (grid - exact).abs() * torch.tensor([31 / 2, 63 / 2])  # align_corners: -1 and 1 are cells 0 and n - 1
    assert grid.dtype == torch.float32
    assert cells.max() < 2**-5  # of an offset of up to one cell; bfloat16 positions would be off by 2^-4


@pytest.mark.parametrize("autocast", [True, False])
def test_dar_runs_in_bfloat16(autocast):
    dar = DAR((8, 16, 32, 64), mlp_ratio=1)
    maps = [torch.randn(2, c, 64 // s, 64 // s) for c, s in zip((8, 16, 32, 64), (4, 8, 16, 32), strict=True)]
    with Precision("bf16", CPU).autocast() if autocast else nullcontext():
        if not autocast:
            dar, maps = dar.bfloat16(), [m.bfloat16() for m in maps]
        fused = dar(maps, maps)
    assert all(f.isfinite().all() for f in fused)


def test_what_a_device_cannot_do_is_refused(monkeypatch):
    with pytest.raises(UserError, match="precision=tf32 is not known; choose one of fp32, bf16, fp16"):
        Precision("tf32", CPU)
    with pytest.raises(UserError, match=r"precision=fp16 needs a GPU.*give precision=bf16"):
        Precision("fp16", CPU)
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UserError, match="Tesla T4 has no bfloat16; give precision=fp16"):
        Precision("bf16", torch.device("cuda"))
    with pytest.raises(UserError, match=r"no_grad_precision=bf16, but the GPU Tesla T4 has no bfloat16; .*=auto"):
        Precision("fp32", torch.device("cuda"), "bf16")


@pytest.mark.parametrize("fast", [True, False])
def test_passes_without_gradients_are_bfloat16_where_that_is_fast_or_asked_for(monkeypatch, fast):
    monkeypatch.setattr(precision, "has_bf16", lambda device: fast)
    chosen = {no_grad: Precision("fp32", CPU, no_grad).no_grad_dtype for no_grad in precision.NO_GRAD}
    assert chosen == {"same": None, "bf16": torch.bfloat16, "auto": torch.bfloat16 if fast else None}
    assert all(
        Precision("bf16", CPU, no_grad).no_grad_dtype is None for no_grad in precision.NO_GRAD
    )  # it is already
    assert str(Precision("fp32", CPU, "bf16")) == "fp32 (bf16 without gradients)"
    assert str(Precision("fp32", CPU, "same")) == "fp32"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_nothing_is_scaled_but_float16(name):
    made = Precision(name, CPU)
    assert not made.scaler.is_enabled() and made.loss_scale() == 1.0


def test_at_least_float32():
    for dtype in (torch.float32, torch.float64, torch.int64):
        tensor = torch.ones(2, dtype=dtype)
        assert at_least_float32(tensor) is tensor
    for dtype in (torch.bfloat16, torch.float16):
        assert at_least_float32(torch.ones(2, dtype=dtype)).dtype == torch.float32
