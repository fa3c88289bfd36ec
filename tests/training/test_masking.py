"""Hidden squares: their shape and share, and what several processes draw."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ranks import on_ranks

from icda.distributed import rank, world_size
from icda.training.masking import draw_hidden


@pytest.mark.parametrize(("size", "block"), [((6, 8), 2), ((7, 9), 4), ((5, 3), 8), ((3, 5), 1)])
def test_every_pixel_is_as_its_square(size, block):
    """The squares at the right and at the bottom, which the image may cut off, among them."""
    height, width = size
    labels, rows, columns = torch.zeros(3, *size, dtype=torch.long), -(-height // block), -(-width // block)
    hidden = draw_hidden(np.random.default_rng(0), labels, block, 0.5)
    drawn = np.random.default_rng(0).random((3, rows, columns)) < 0.5
    assert hidden.shape == (3, 1, *size) and hidden.dtype == torch.bool
    for b in range(3):
        for y in range(height):
            for x in range(width):
                assert hidden[b, 0, y, x].item() == drawn[b, y // block, x // block]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_the_share_is_that_of_squares_each_by_itself(share):
    labels = torch.zeros(2, 20, 24, dtype=torch.long)
    draws = [draw_hidden(np.random.default_rng(seed), labels, 4, share)[:, 0, ::4, ::4] for seed in range(300)]
    squares = torch.stack(draws).float()  # 300 x 2 x 5 x 6
    assert squares.mean().item() == pytest.approx(share, abs=0.02)
    assert (squares.mean(0) - share).abs().max() < 0.15  # at each place
    spread = (share * (1 - share)) ** 0.5
    assert squares.std(0).mean().item() == pytest.approx(spread, abs=0.02)
    beside = ((squares[..., 1:] - share) * (squares[..., :-1] - share)).mean().item()
    between = ((squares[:, 0] - share) * (squares[:, 1] - share)).mean().item()
    assert beside == pytest.approx(0, abs=0.02) and between == pytest.approx(0, abs=0.02)  # variance: up to 0.25


def test_the_same_state_draws_the_same():
    labels, generators = torch.zeros(2, 8, 8, dtype=torch.long), [np.random.default_rng(3) for _ in range(2)]
    first, second = (draw_hidden(generator, labels, 2, 0.5) for generator in generators)
    assert torch.equal(first, second)
    assert not torch.equal(draw_hidden(generators[0], labels, 2, 0.5), first)


def share_of_hidden(labels: torch.Tensor) -> tuple[torch.Tensor, list[dict]]:
    own = slice(rank() * len(labels) // world_size(), (rank() + 1) * len(labels) // world_size())
    generator = np.random.default_rng(5)
    states = [generator.bit_generator.state]
    hidden = draw_hidden(generator, labels[own], 4, 0.5)
    return hidden, [*states, generator.bit_generator.state]


@pytest.mark.slow
def test_two_processes_hide_what_one_with_the_joined_batch_hides(tmp_path):
    labels = torch.zeros(4, 10, 13, dtype=torch.long)
    hidden, states = share_of_hidden(labels)
    parts = on_ranks(share_of_hidden, 2, tmp_path, labels)
    assert torch.equal(torch.cat([part[0] for part in parts]), hidden)
    assert not torch.equal(parts[0][0], parts[1][0])
    assert all(part[1] == states for part in parts) and states[0] != states[1]
