"""What is shown of DAR is what its layers do: outputs computed again from the reported positions and weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from icda.explanation.dar_view import StageView, cells_of, view_dar
from icda.models import DAR

WIDTHS = (8, 16, 32, 64)
POINTS = np.array([[0.01, 0.99], [0.5, 0.5], [0.7, 0.2], [0.99, 0.99]])


def pair(size: tuple[int, int] = (33, 47)) -> list[list[torch.Tensor]]:
    """Encoder maps of two images; sides that no window of 4 cells divides."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, w, -(-size[0] // 2**i), -(-size[1] // 2**i)) for i, w in enumerate(WIDTHS)]
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)]


def made(**switches: bool) -> DAR:
    """A DAR whose weights are no longer the special ones that it starts with."""
    torch.manual_seed(0)
    dar = DAR(WIDTHS, **switches).eval()
    with torch.no_grad():
        for p in dar.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for stage in dar.stages:
            stage.layers[1].attention.offset_head[-1].weight.mul_(10)  # offsets of some tenths of a cell
            if switches.get("position_table"):
                nn.init.normal_(stage.layers[0].attention.position_table.relative_position_bias_table)
    return dar


@pytest.fixture
def dar() -> DAR:
    return made()


@pytest.fixture
def switched() -> DAR:
    return made(aligned=True, position_table=True)


def outputs_of(dar: DAR, maps: list[list[torch.Tensor]]) -> dict[nn.Module, tuple[tuple, np.ndarray]]:
    """What the attention layers are given and return, taken down by hooks of the test's own."""
    seen: dict[nn.Module, tuple[tuple, np.ndarray]] = {}
    layers = [layer.attention for stage in dar.stages for layer in stage.layers]
    handles = [m.register_forward_hook(lambda m, args, out: seen.update({m: (args, out[0].numpy())})) for m in layers]
    with torch.no_grad():
        dar(*maps)
    for handle in handles:
        handle.remove()
    return seen


def conv1x1(layer: nn.Conv2d | nn.Linear, values: np.ndarray) -> np.ndarray:
    """A 1 x 1 convolution of columns (channels, N), in float64."""
    weight = layer.weight.detach().numpy().astype(np.float64)
    return weight.reshape(len(weight), -1) @ values + layer.bias.detach().numpy()[:, None]


def read_bilinear(plane: np.ndarray, row: float, column: float) -> np.ndarray:
    """A map (channels, H, W) between its cells; nothing is outside of it."""
    top, left = int(np.floor(row)), int(np.floor(column))
    total = np.zeros(len(plane))
    for y in (top, top + 1):
        for x in (left, left + 1):
            if 0 <= y < plane.shape[1] and 0 <= x < plane.shape[2]:
                total += plane[:, y, x] * (1 - abs(row - y)) * (1 - abs(column - x))
    return total


@pytest.mark.parametrize("size", [(33, 47), (64, 64)])
@pytest.mark.parametrize("kind", ["dar", "switched"])
def test_positions_and_weights_give_the_deformable_layers_output(request, kind, size):
    dar = request.getfixturevalue(kind)
    maps = pair(size)
    outputs = outputs_of(dar, maps)
    _, views = view_dar(dar, *maps, POINTS)
    for stage, view in zip(dar.stages, views, strict=True):
        layer, shown = stage.layers[1].attention, view.deformable
        (night, day), expected = outputs[layer]
        with torch.no_grad():
            joint = layer.joint(torch.cat([night, day], 1))[0].numpy().astype(np.float64)
        width, (height, wide) = joint.shape[0] // layer.groups, view.size
        assert shown.positions.shape == (layer.groups, height, wide, 2)
        sampled = np.stack(
            [
                np.concatenate(
                    [
                        read_bilinear(joint[g * width : (g + 1) * width], *shown.positions[g, y, x])
                        for g in range(layer.groups)
                    ]
                )
                for y in range(height)
                for x in range(wide)
            ],
            -1,
        )
        values = conv1x1(layer.v, sampled).reshape(layer.heads, -1, height * wide)
        for query, (row, column) in enumerate(view.queries):
            weights = shown.weights[query].reshape(layer.heads, -1).astype(np.float64)
            found = conv1x1(layer.out, np.einsum("mdk,mk->md", values, weights).reshape(-1, 1))[:, 0]
            np.testing.assert_allclose(found, expected[:, row, column], rtol=1e-4, atol=1e-4)
        assert np.abs(shown.positions - shown.references).max() > 0.05  # something was to be seen


@pytest.mark.parametrize("size", [(33, 47), (64, 64)])
@pytest.mark.parametrize("kind", ["dar", "switched"])
def test_weights_give_the_local_layers_output(request, kind, size):
    dar = request.getfixturevalue(kind)
    maps = pair(size)
    outputs = outputs_of(dar, maps)
    _, views = view_dar(dar, *maps, POINTS)
    for stage, view in zip(dar.stages, views, strict=True):
        layer, shown = stage.layers[0].attention, view.local
        (night, _), expected = outputs[layer]
        width = night.shape[1]
        for query, (row, column) in enumerate(view.queries):
            top, left = shown.corners[query]
            assert (top, left) == (row // 4 * 4, column // 4 * 4)
            cells = night[0, :, top : top + 4, left : left + 4].numpy()
            weights = shown.weights[query]
            assert np.all(weights[:, cells.shape[1] :] == 0) and np.all(weights[:, :, cells.shape[2] :] == 0)
            inside = weights[:, : cells.shape[1], : cells.shape[2]].reshape(layer.heads, -1).astype(np.float64)
            values = conv1x1(layer.qkv, cells.reshape(width, -1).astype(np.float64))[2 * width :]
            mixed = np.einsum("mdk,mk->md", values.reshape(layer.heads, -1, inside.shape[1]), inside)
            found = conv1x1(layer.out, mixed.reshape(-1, 1))[:, 0]
            np.testing.assert_allclose(found, expected[:, row, column], rtol=1e-4, atol=1e-4)


def test_weights_add_up_to_one_per_head(dar):
    for view in view_dar(dar, *pair(), POINTS)[1]:
        for weights in (view.local.weights, view.deformable.weights):
            np.testing.assert_allclose(weights.sum((2, 3)), 1, rtol=1e-5)


def test_without_offsets_samples_are_read_at_the_reference_points(dar):
    for stage in dar.stages:
        nn.init.zeros_(stage.layers[1].attention.offset_head[-1].weight)
    for view in view_dar(dar, *pair((64, 128)), POINTS)[1]:
        for positions in view.deformable.positions:
            np.testing.assert_allclose(positions, view.deformable.references, atol=1e-5)


def test_reference_points_by_hand(dar):
    view: StageView = view_dar(dar, *pair((32, 64)), POINTS)[1][1]
    # The second stage works at an eighth of these maps, on 4 x 8 cells: centres at 1/8 and 1/16, read from -1 at the
    # first cell's centre to 1 at the last's.
    assert view.size == (4, 8)
    references = view.deformable.references
    np.testing.assert_allclose(references[:, 0, 0], [0.375, 1.125, 1.875, 2.625])
    np.testing.assert_allclose(references[0, :, 1], (np.arange(8) + 0.5) * 7 / 8, rtol=1e-6)


def test_aligned_reference_points_are_the_cells(switched):
    for stage in switched.stages:
        nn.init.zeros_(stage.layers[1].attention.offset_head[-1].weight)
    for view in view_dar(switched, *pair((64, 96)), POINTS)[1]:
        height, width = view.size
        cells = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)
        np.testing.assert_array_equal(view.deformable.references, cells)
        for positions in view.deformable.positions:
            np.testing.assert_allclose(positions, cells, atol=1e-5)


def test_looking_changes_nothing(dar):
    maps = pair()
    with torch.no_grad():
        before = dar(*maps)
    fused, _ = view_dar(dar, *maps, POINTS)
    assert all(torch.equal(a, b) for a, b in zip(before, fused, strict=True))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in dar.modules())


def test_hooks_go_when_something_goes_wrong(dar):
    night, day = pair()
    with pytest.raises(ValueError, match="same shapes"):
        view_dar(dar, night, day[:3], POINTS)
    assert not any(module._forward_pre_hooks for module in dar.modules())


def test_cells_of_points():
    points = np.array([[0, 0], [0.25, 0.4999], [0.999999, 0.5]])
    assert cells_of(points, (4, 8)).tolist() == [[0, 0], [1, 3], [3, 4]]
