"""DAR: shapes, the published sizes, geometry of its sampling, windows that do not divide the map."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from icda.models import DAR
from icda.models.dar import DeformableAttention, LocalAttention, divisor_at_most

WIDTHS = (8, 16, 32, 64)


def maps(height: int, width: int, widths=WIDTHS, batch: int = 2) -> list[torch.Tensor]:
    return [torch.randn(batch, w, -(-height // 2**i), -(-width // 2**i)) for i, w in enumerate(widths)]


def trained(dar: DAR) -> DAR:
    """A DAR whose weights are no longer the special ones that it starts with."""
    with torch.no_grad():
        for p in dar.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return dar


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (8, 60), (135, 240)])
def test_any_size_keeps_shapes_and_the_first_two_maps(size):
    night, day = maps(*size), maps(*size)
    fused = DAR(WIDTHS).eval()(night, day)
    assert [m.shape for m in fused] == [m.shape for m in night]
    assert fused[0] is night[0] and fused[1] is night[1]
    assert not torch.equal(fused[2], night[2]) and not torch.equal(fused[3], night[3])


def test_encoders_that_round_odd_sides_down():
    night = [torch.randn(1, w, *s) for w, s in zip(WIDTHS, [(17, 23), (8, 11), (4, 5), (2, 2)], strict=True)]
    assert [m.shape for m in DAR(WIDTHS).eval()(night, night)] == [m.shape for m in night]


def test_the_day_map_matters():
    dar, night, day = trained(DAR(WIDTHS)).eval(), maps(32, 32), maps(32, 32)
    assert not torch.allclose(dar(night, day)[3], dar(night, night)[3])


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="same shapes"):
        DAR(WIDTHS)(maps(32, 32), maps(32, 64))
    with pytest.raises(ValueError, match="four maps"):
        DAR(WIDTHS[:3])


@pytest.mark.parametrize(
    ("width", "most", "expected"), [(320, 4, 4), (512, 8, 8), (160, 4, 4), (256, 8, 8), (90, 4, 3), (7, 4, 1)]
)
def test_heads(width, most, expected):
    assert divisor_at_most(width, most) == expected


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mit_b0", "resnet18"])
def test_widths_of_other_encoders(name):
    widths = {
        "tf_efficientnet_lite0": (24, 40, 112, 320),
        "mit_b0": (32, 64, 160, 256),
        "resnet18": (64, 128, 256, 512),
    }
    dar = DAR(widths[name])
    night = maps(16, 16, widths[name], 1)
    assert [m.shape for m in dar(night, night)] == [m.shape for m in night]


@pytest.mark.parametrize("switches", [{}, {"aligned": True, "position_table": True}])
def test_every_parameter_gets_a_gradient(switches):
    dar = trained(DAR(WIDTHS, drop_path=0.0, **switches))  # a layer that is left out by chance gets none
    sum(m.sum() for m in dar(maps(32, 32), maps(32, 32))[2:]).backward()
    assert [n for n, p in dar.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_drop_path_rises_over_the_four_layers():
    rates = [layer.drop_path.drop_prob for stage in DAR(WIDTHS).stages for layer in stage.layers]
    assert rates == pytest.approx([0, 1 / 15, 2 / 15, 1 / 5])


def test_initialisation_changes_what_torch_chose():
    torch.manual_seed(0)
    stage = DAR((64, 128, 320, 512)).stages[0]
    attention = stage.layers[1].attention
    assert stage.layers[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert attention.joint.weight.std().item() == pytest.approx((2 / (9 * 320)) ** 0.5, rel=0.05)
    assert attention.offset_head[-1].weight.std().item() == pytest.approx(0.02, rel=0.3)
    assert attention.q.bias.abs().max() == 0


def test_starts_close_to_the_identity_and_leaves_it():
    night, day, dar = maps(32, 32), maps(32, 32), DAR(WIDTHS)
    fused = dar.eval()(night, day)
    for i in (2, 3):
        assert 0 < (fused[i] - night[i]).norm() < 0.15 * night[i].norm()
    sum(m.square().sum() for m in fused).backward()
    for stage in dar.stages:
        for layer in stage.layers:
            assert layer.attention.out.weight.grad.any() and layer.mlp[-1].weight.grad.any()


class NoOffsets(DeformableAttention):
    """Samples where the reference points are moved to: cell centres of the sampling convention."""

    def positions(self, joint):
        height, width = joint.shape[2:]
        axes = [torch.linspace(-1, 1, n) for n in (height, width)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).expand(len(joint), -1, -1, -1)


def test_sampling_at_cell_centres_is_plain_attention():
    torch.manual_seed(0)
    attention = NoOffsets(16, heads=4, groups=4, kernel=3, offset_range=2.0)
    night, day = torch.randn(2, 2, 16, 5, 7).unbind(0)
    joint = attention.joint(torch.cat([night, day], 1))
    q, k, v = (
        rearrange(f(x), "b (m d) h w -> b m (h w) d", m=4)
        for f, x in ((attention.q, night), (attention.k, joint), (attention.v, joint))
    )
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)  # head width 4: scale 4 ** -0.5
    expected = attention.out(rearrange(weights @ v, "b m (h w) d -> b (m d) h w", h=5))
    torch.testing.assert_close(attention(night, day), expected, rtol=1e-5, atol=1e-5)


def test_offsets_are_bounded_and_in_their_axes():
    attention = DeformableAttention(16, heads=4, groups=4, kernel=3, offset_range=2.0)
    nn.init.constant_(attention.offset_head[-1].weight, 100.0)
    joint = torch.randn(8, 4, 6, 12)
    offsets = attention.offsets(joint)
    assert offsets.shape == (8, 6, 12, 2)
    assert offsets[..., 0].abs().max() <= 2 / 6 + 1e-6 and offsets[..., 1].abs().max() <= 2 / 12 + 1e-6
    assert offsets[..., 0].abs().max() > 2 / 12  # y is scaled by the height
    centres = attention.positions(joint) - offsets
    assert centres[0, 0, 0].tolist() == pytest.approx([-5 / 6, -11 / 12])


@pytest.mark.parametrize("size", [(5, 9), (3, 2), (1, 5), (7, 12)])
def test_aligned_sampling_without_offsets_reads_the_joint_map_itself(size):
    for aligned in (True, False):
        attention = DeformableAttention(16, heads=4, groups=4, kernel=3, offset_range=2.0, aligned=aligned).double()
        nn.init.zeros_(attention.offset_head[-1].weight)
        night, day = torch.randn(2, 2, 16, *size, dtype=torch.float64).unbind(0)
        joint, (_, sampled) = attention.joint(torch.cat([night, day], 1)), attention.sample(night, day)
        if aligned and size != (7, 12):  # the others' positions can be written in binary
            assert torch.equal(sampled, joint)
        elif aligned:
            torch.testing.assert_close(sampled, joint, rtol=1e-12, atol=1e-12)
        else:
            assert not torch.isclose(sampled, joint, rtol=0.01).all()


@pytest.mark.parametrize(("aligned", "expected"), [(False, [1.0, 3.0, 5.0]), (True, [0.0, 3.0, 6.0])])
def test_where_a_row_of_cells_is_read_by_hand(aligned, expected):
    attention = DeformableAttention(1, heads=1, groups=1, kernel=3, offset_range=2.0, aligned=aligned)
    for weight in (attention.offset_head[-1].weight, attention.joint.weight, attention.joint.bias):
        nn.init.zeros_(weight)
    attention.joint.weight.data[0, 0, 1, 1] = 1  # the joint map is the night map
    night = torch.tensor([[[[0.0, 3.0, 6.0]]]])
    # Published: middles at 1/6, 1/2 and 5/6 of the side, taken as 1/3, 1 and 5/3 cells from the first cell's middle.
    assert attention.sample(night, night)[1].flatten().tolist() == pytest.approx(expected, abs=1e-6)


def from_table(attention: LocalAttention, height: int, width: int) -> torch.Tensor:
    """What Swin adds to a query's attention to a key, (heads, cells, cells): of the table's row of their offset."""
    added = torch.zeros(attention.heads, height * width, height * width)
    if attention.position_table is None:
        return added
    table, window = attention.position_table.relative_position_bias_table, attention.window
    assert table.shape == ((2 * window - 1) ** 2, attention.heads)
    for head in range(attention.heads):
        for q in range(height * width):
            for k in range(height * width):
                down, right = q // width - k // width, q % width - k % width
                row = (down + window - 1) * (2 * window - 1) + right + window - 1
                added[head, q, k] = table[row, head]
    return added


def brute_force_windows(attention: LocalAttention, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for top in range(0, x.shape[2], attention.window):
        for left in range(0, x.shape[3], attention.window):
            cells = x[:, :, top : top + attention.window, left : left + attention.window]
            tokens = cells.flatten(2).transpose(1, 2)
            q, k, v = F.linear(tokens, attention.qkv.weight, attention.qkv.bias).chunk(3, -1)
            split = [t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (q, k, v)]
            scale = split[0].shape[-1] ** -0.5
            products = (split[0] @ split[1].transpose(-2, -1)) * scale + from_table(attention, *cells.shape[2:])
            mixed = products.softmax(-1) @ split[2]
            result = attention.out(mixed.transpose(1, 2).flatten(2))
            out[:, :, top : top + attention.window, left : left + attention.window] = result.transpose(
                1, 2
            ).unflatten(-1, cells.shape[2:])
    return out


@torch.no_grad()
@pytest.mark.parametrize("position_table", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 5), (1, 1)])
def test_local_attention_is_attention_in_each_window(size, position_table):
    attention = LocalAttention(16, heads=4, window=4, position_table=position_table)
    x = torch.randn(2, 16, *size)
    plain = attention(x, x)
    if position_table:
        nn.init.normal_(attention.position_table.relative_position_bias_table)
        assert torch.allclose(attention(x, x), plain, atol=1e-3) is (size == (1, 1))  # a cell alone has no other
    torch.testing.assert_close(attention(x, x), brute_force_windows(attention, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_position_table_in_half_precision(size):
    attention, x = LocalAttention(16, heads=4, window=4, position_table=True), torch.randn(2, 16, *size)
    nn.init.normal_(attention.position_table.relative_position_bias_table)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(x, x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), attention(x, x), rtol=0.05, atol=0.05)
    found.sum().backward()
    assert attention.position_table.relative_position_bias_table.grad.abs().sum(1).all()


def test_the_position_table_is_all_that_switches_add_to_the_state():
    plain, switched = DAR(WIDTHS), DAR(WIDTHS, aligned=True, position_table=True)
    added = {
        f"stages.{i}.layers.0.attention.position_table.relative_position_bias_table": (49, heads)
        for i, heads in enumerate((4, 8))
    }
    assert {n: v.shape for n, v in switched.state_dict().items()} == {
        **{n: v.shape for n, v in plain.state_dict().items()},
        **added,
    }
    assert not [name for name in plain.state_dict() if "table" in name]
    assert all(not layer.aligned for layer in plain.modules() if isinstance(layer, DeformableAttention))
