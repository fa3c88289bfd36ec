"""What a run is made of when it goes on."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim import AdamW

from icda.training.build import _lay_out


def test_averages_of_another_memory_layout_are_those_of_their_parameters():
    torch.manual_seed(0)
    images = torch.randn(2, 3, 8, 8)

    def step(conv: nn.Conv2d, optimizer: AdamW) -> None:
        optimizer.zero_grad()
        conv(images).square().sum().backward()
        optimizer.step()

    rows = nn.Conv2d(3, 4, 3)
    optimizer = AdamW(rows.parameters(), lr=0.1, fused=True)
    step(rows, optimizer)
    pixels = copy.deepcopy(rows).to(memory_format=torch.channels_last)
    other = AdamW(pixels.parameters(), lr=0.1, fused=True)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    _lay_out(other)
    for _ in range(3):
        step(rows, optimizer)
        step(pixels, other)
    assert pixels.weight.stride() != rows.weight.stride()
    torch.testing.assert_close(pixels.weight, rows.weight)
