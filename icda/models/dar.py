"""DAR, deformable attention relevance: night features look up what they need in day features of the same place.

Paper: ICDA, section 3.3; method section 5. Module names follow the method's text; where the published
checkpoint keeps the same tensors is in ``icda.weights.published``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from einops import rearrange
from timm.layers import DropPath, LayerNorm2d, RelPosBias, trunc_normal_
from timm.models.pvt_v2 import Block as MiTBlock
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-5  # of every LayerNorm but the two of the offset block


def divisor_at_most(width: int, most: int) -> int:
    """The largest number not above ``most`` that divides ``width``: how many heads or groups a width allows."""
    return max(n for n in range(1, most + 1) if width % n == 0)


class LocalAttention(nn.Module):
    """Multi-head self-attention within square windows of the night map (layer 1 of a DAR stage).

    Args:
        dim: Width D of the map.
        heads: Attention heads; divides D.
        window: Side of a window in cells.
        position_table: Whether a learnt number for each head and offset between two cells is added to their
            attention, as in Swin. The published implementation has the table and does not use it.
    """

    def __init__(self, dim: int, heads: int, window: int, position_table: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.position_table = RelPosBias((window, window), heads) if position_table else None

    def forward(self, night: Tensor, day: Tensor) -> Tensor:
        """Attend within windows; a side that the window does not divide is padded, masked and cropped again.

        Args:
            night: (B, D, H, W) float.
            day: Unused; the argument that the deformable layer needs.

        Returns:
            (B, D, H, W) float.
        """
        (height, width), w = night.shape[2:], self.window
        rows, columns = (height + -height % w) // w, (width + -width % w) // w
        qkv, mask = self.in_windows(night)
        x = F.scaled_dot_product_attention(*qkv, attn_mask=mask)
        x = self.out(rearrange(x, "n h t d -> n t (h d)"))
        x = rearrange(x, "(b r c) (i j) d -> b d (r i) (c j)", r=rows, c=columns, i=w)
        return x[:, :, :height, :width]

    def in_windows(self, night: Tensor) -> tuple[Tensor, Tensor | None]:
        """Queries, keys and values of each window.

        Args:
            night: (B, D, H, W) float.

        Returns:
            (3, B * windows, heads, window^2, D / heads) float, windows and cells row by row; and which cells of a
            window are inside the map, (B * windows, 1, 1, window^2) bool, or None where all are. With a position
            table, what is added to the attention: its numbers, and minus infinity for cells outside the map.
        """
        (height, width), w = night.shape[2:], self.window
        pad = (0, -width % w, 0, -height % w)
        x = rearrange(F.pad(night, pad), "b d (r i) (c j) -> (b r c) (i j) d", i=w, j=w)
        qkv = rearrange(self.qkv(x), "n t (three h d) -> three n h t d", three=3, h=self.heads)
        added = None if self.position_table is None else self.position_table.get_bias().to(qkv.dtype)
        if not any(pad):
            return qkv, added
        inside = F.pad(night.new_ones(1, 1, height, width), pad)
        inside = rearrange(inside, "1 1 (r i) (c j) -> (r c) 1 1 (i j)", i=w, j=w) > 0
        inside = inside.repeat(len(night), 1, 1, 1)
        return qkv, inside if added is None else added.masked_fill(~inside, -torch.inf)


class DeformableAttention(nn.Module):
    """Attention of night queries to samples read at learnt positions of the joint night-day map (layer 2).

    Args:
        dim: Width D of both maps.
        heads: Attention heads; divides D. The offset block has as many, or fewer where D / groups asks for it.
        groups: Groups of channels that share their offsets; divides D.
        kernel: Side of the depthwise convolution that predicts offsets, odd.
        offset_range: Largest offset, as a multiple of 1 / side in normalised coordinates (2 is one cell).
        aligned: Whether an offset of 0 reads a cell itself. In the published form it reads up to half a cell beside
            it towards the middle of the map, the more the nearer to the border.
    """

    def __init__(
        self, dim: int, heads: int, groups: int, kernel: int, offset_range: float, aligned: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.groups = groups
        self.offset_range = offset_range
        self.aligned = aligned
        width = dim // groups
        self.joint = nn.Conv2d(2 * dim, dim, 3, padding=1)
        self.offset_norm = nn.LayerNorm(width, eps=EPS)
        self.offset_block = MiTBlock(
            width, divisor_at_most(width, heads), qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)
        )
        self.offset_head = nn.Sequential(
            nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width),
            LayerNorm2d(width, eps=EPS),
            nn.GELU(),
            nn.Conv2d(width, 2, 1, bias=False),
        )
        self.q = nn.Conv2d(dim, dim, 1)
        self.k = nn.Conv2d(dim, dim, 1)
        self.v = nn.Conv2d(dim, dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)

    def offsets(self, joint: Tensor) -> Tensor:
        """Offsets per group and cell.

        Args:
            joint: (B * groups, D / groups, H, W) float.

        Returns:
            (B * groups, H, W, 2) in normalised coordinates, last axis (y, x), within ``offset_range`` / (H, W);
            float32, or float64 where the map is.
        """
        height, width = joint.shape[2:]
        tokens = self.offset_norm(rearrange(joint, "n c h w -> n (h w) c"))
        tokens = self.offset_block(tokens, (height, width))
        x = self.offset_head(rearrange(tokens, "n (h w) c -> n c h w", h=height))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = x.new_tensor([1 / height, 1 / width]) * self.offset_range
        return x.tanh().permute(0, 2, 3, 1) * scale

    def positions(self, joint: Tensor) -> Tensor:
        """Where each group samples the joint map: reference points plus offsets.

        Args:
            joint: (B * groups, D / groups, H, W) float.

        Returns:
            (B * groups, H, W, 2), -1..1 across the map and a little beyond, last axis (y, x); float32, or float64
            where the map is.
        """
        height, width = joint.shape[2:]
        offsets = self.offsets(joint)
        # Not in half precision: near the border of a map of 64 cells, bfloat16 numbers lie 1/8 of a cell apart.
        cells = [
            torch.linspace(0.5, side - 0.5, side, device=joint.device, dtype=offsets.dtype)
            for side in (height, width)
        ]
        points = [
            # Sampling takes -1 and 1 for the outermost cells' middles; the published points, for their outer edges.
            (c - 0.5) / max(side - 1, 1) * 2 - 1 if self.aligned else c / side * 2 - 1
            for c, side in zip(cells, (height, width), strict=True)
        ]
        return torch.stack(torch.meshgrid(*points, indexing="ij"), -1) + offsets

    def forward(self, night: Tensor, day: Tensor) -> Tensor:
        """Enrich the night map by what its queries find in both maps.

        Args:
            night: (B, D, H, W) float.
            day: (B, D, H, W) float.

        Returns:
            (B, D, H, W) float.
        """
        _, sampled = self.sample(night, day)
        x = F.scaled_dot_product_attention(*self.queries_keys_values(night, sampled))
        return self.out(rearrange(x, "b m (h w) d -> b (m d) h w", h=night.shape[2]))

    def sample(self, night: Tensor, day: Tensor) -> tuple[Tensor, Tensor]:
        """What is read of the joint map, and where.

        Args:
            night: (B, D, H, W) float.
            day: (B, D, H, W) float.

        Returns:
            Positions (B * groups, H, W, 2) as ``positions`` gives them, and what is read there, (B, D, H, W) float,
            each group's channels at its own positions.
        """
        joint = rearrange(self.joint(torch.cat([night, day], 1)), "b (g c) h w -> (b g) c h w", g=self.groups)
        positions = self.positions(joint)
        values, grid = joint.to(positions.dtype), positions.flip(-1)  # grid_sample wants (x, y)
        sampled = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
        return positions, rearrange(sampled.to(joint.dtype), "(b g) c h w -> b (g c) h w", g=self.groups)

    def queries_keys_values(self, night: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the night map's cells, and a key and a value for each sampled cell.

        Args:
            night: (B, D, H, W) float.
            sampled: (B, D, H, W) float.

        Returns:
            Each (B, heads, H * W, D / heads) float, cells row by row.
        """
        q, k, v = (
            rearrange(x, "b (m d) h w -> b m (h w) d", m=self.heads)
            for x in (self.q(night), self.k(sampled), self.v(sampled))
        )
        return q, k, v


class ConvMLP(nn.Sequential):
    """1 x 1 convolution to ``ratio`` times the width, 3 x 3 depthwise convolution, GELU, 1 x 1 convolution back."""

    def __init__(self, dim: int, ratio: int) -> None:
        hidden = dim * ratio
        super().__init__(
            nn.Conv2d(dim, hidden, 1),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            nn.GELU(),
            nn.Conv2d(hidden, dim, 1),
        )


class DARLayer(nn.Module):
    """A pre-norm layer: attention and MLP, each added to the night map; the day map passes the first norm alone.

    Args:
        attention: ``LocalAttention`` or ``DeformableAttention``.
        dim: Width D of both maps.
        mlp_ratio: Hidden width of the MLP as a multiple of D.
        drop_path: Probability with which a sample skips a branch in training.
    """

    def __init__(self, attention: nn.Module, dim: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(dim, eps=EPS)
        self.attention = attention
        self.norm2 = LayerNorm2d(dim, eps=EPS)
        self.mlp = ConvMLP(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, night: Tensor, day: Tensor) -> tuple[Tensor, Tensor]:
        """Both maps (B, D, H, W) float, the night map enriched and the day map normalised."""
        day = self.norm1(day)
        night = night + self.drop_path(self.attention(self.norm1(night), day))
        night = night + self.drop_path(self.mlp(self.norm2(night)))
        return night, day


class DARStage(nn.Module):
    """Projects a pair of maps to the next stage's grid and width, then a local and a deformable layer.

    Args:
        in_dim: Width of the maps that are read.
        dim: Width of the map that is written.
        heads: Heads and groups, or the largest number below that divides ``dim``.
        kernel: Side of the convolution that predicts offsets.
        window: Side of a local window in cells.
        mlp_ratio: Hidden width of the MLPs as a multiple of ``dim``.
        drop_path: Rates of the two layers.
        offset_range: Largest offset, as a multiple of 1 / side.
        aligned: See ``DeformableAttention``.
        position_table: See ``LocalAttention``.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        heads: int,
        kernel: int,
        window: int,
        mlp_ratio: int,
        drop_path: tuple[float, float],
        offset_range: float,
        aligned: bool = False,
        position_table: bool = False,
    ) -> None:
        super().__init__()
        heads = divisor_at_most(dim, heads)
        self.project = nn.Sequential(nn.Conv2d(in_dim, dim, 3, stride=2, padding=1), LayerNorm2d(dim, eps=EPS))
        local = LocalAttention(dim, heads, window, position_table)
        deformable = DeformableAttention(dim, heads, heads, kernel, offset_range, aligned)
        self.layers = nn.ModuleList(
            DARLayer(attention, dim, mlp_ratio, rate)
            for attention, rate in zip((local, deformable), drop_path, strict=True)
        )

    def forward(self, night: Tensor, day: Tensor) -> Tensor:
        """The night map (B, dim, H / 2, W / 2) float, from both maps (B, in_dim, H, W)."""
        night, day = self.project(night), self.project(day)
        for layer in self.layers:
            night, day = layer(night, day)
        return night


class DAR(nn.Module):
    """Deformable attention relevance: couples features of a night-like and of a day image (method section 5).

    Reads maps 1 and 2 of both images and adds what it finds to the night maps 2 and 3; maps 0 and 1 pass through.
    Weights start as the encoder's do (linear: truncated normal 0.02; convolution: normal sqrt(2 / fan_out per
    group); biases 0), but for three things, chosen so that DAR starts close to the identity, and the head, which
    sees plain and enriched maps in turn, finds the same statistics in both: the last convolution of the offsets is
    truncated normal 0.02 (sampling starts near the cell centres), the layers that write to the night map start at 0,
    and the norm of the projection, which is added to the night map as it is, at 0.1.

    Args:
        widths: Widths of the encoder's four maps.
        heads: Heads and groups of the two stages, or the largest number below that divides the width.
        offset_kernels: Sides of the convolutions that predict offsets, odd, one per stage.
        window: Side of a local window in cells.
        mlp_ratio: Hidden width of the MLPs as a multiple of the map's width.
        drop_path: Rate of the last of the four layers; it rises linearly from 0.
        offset_range: Largest offset as a multiple of 1 / side in normalised coordinates; 2 is one cell.
        aligned: Whether offsets start at the cells that sampling reads; see ``DeformableAttention``.
        position_table: Whether local attention uses a relative-position table; see ``LocalAttention``.
    """

    def __init__(
        self,
        widths: Sequence[int],
        heads: Sequence[int] = (4, 8),
        offset_kernels: Sequence[int] = (9, 7),
        window: int = 4,
        mlp_ratio: int = 4,
        drop_path: float = 0.2,
        offset_range: float = 2.0,
        aligned: bool = False,
        position_table: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != 4:
            raise ValueError(f"DAR couples four maps, got {len(widths)} widths: {list(widths)}")
        rates = [drop_path * i / 3 for i in range(4)]
        self.stages = nn.ModuleList(
            DARStage(
                in_dim=widths[i + 1],
                dim=widths[i + 2],
                heads=heads[i],
                kernel=offset_kernels[i],
                window=window,
                mlp_ratio=mlp_ratio,
                drop_path=(rates[2 * i], rates[2 * i + 1]),
                offset_range=offset_range,
                aligned=aligned,
                position_table=position_table,
            )
            for i in range(2)
        )
        self.apply(self._init_weights)
        for stage in self.stages:
            trunc_normal_(stage.layers[1].attention.offset_head[-1].weight, std=0.02)
            nn.init.constant_(stage.project[1].weight, 0.1)
            for layer in stage.layers:
                nn.init.zeros_(layer.attention.out.weight)
                nn.init.zeros_(layer.mlp[-1].weight)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, night_maps: Sequence[Tensor], day_maps: Sequence[Tensor]) -> list[Tensor]:
        """The night maps enriched by the day maps.

        Args:
            night_maps: Four float maps (B, widths[i], H_i, W_i), finest first.
            day_maps: Four float maps of the same shapes.

        Returns:
            Four maps of the same shapes; the first two are the night maps themselves.

        Raises:
            ValueError: If night and day maps differ in shape.
        """
        shapes = [[tuple(m.shape) for m in maps] for maps in (night_maps, day_maps)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"night and day maps must have the same shapes, got {shapes[0]} and {shapes[1]}")
        fused = list(night_maps)
        for i, stage in enumerate(self.stages):
            found = stage(night_maps[i + 1], day_maps[i + 1])
            if found.shape[2:] != night_maps[i + 2].shape[2:]:  # encoders that round odd sides down
                size = night_maps[i + 2].shape[2:]
                found = F.interpolate(found, size, mode="bilinear", align_corners=False)
            fused[i + 2] = night_maps[i + 2] + found
        return fused
