"""The head for inference gives what the plain one gives, and needs less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import profile

from icda import prepared_head
from icda.models import DAFormerHead
from icda.prepared_head import PreparedHead, prepare_head


def folded(head: nn.Module) -> nn.Module:
    """The head with biases in the place of its batch norms."""
    for module in list(head.modules()):
        if isinstance(module, nn.Sequential) and len(module) == 3:
            module[1] = nn.Identity()
            module[0].bias = nn.Parameter(torch.randn(module[0].out_channels, dtype=module[0].weight.dtype))
    return head.eval()


def pair(*args: object, dtype: torch.dtype = torch.float64, **options: object) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    head = folded(DAFormerHead(*args, **options).to(dtype))
    other = copy.deepcopy(head)
    prepare_head(other)
    assert type(other) is PreparedHead and type(head) is DAFormerHead
    return head, other


def maps_of(widths: list[int], size: tuple[int, int], batch: int, dtype: torch.dtype) -> list[Tensor]:
    sizes = [(-(-size[0] // 2**i), -(-size[1] // 2**i)) for i in range(len(widths))]
    return [torch.randn(batch, width, *cells, dtype=dtype) for width, cells in zip(widths, sizes, strict=True)]


@pytest.mark.parametrize(
    ("widths", "channels", "dilations", "size", "batch"),
    [
        ([8, 16, 40, 64], 12, (1, 6, 12, 18), (33, 47), 1),
        ([8, 16, 40, 64], 12, (1, 6, 12, 18), (7, 5), 2),
        ([8, 6], 5, (2, 3), (20, 12), 3),
        ([4, 5, 6], 7, (1, 1, 4), (1, 9), 1),
    ],
)
@torch.inference_mode()
def test_logits_are_those_of_the_plain_head(widths, channels, dilations, size, batch, monkeypatch):
    plain, ready = pair(widths, 19, channels, dilations)
    maps = maps_of(widths, size, batch, torch.float64)
    expected = plain(maps)
    for values in (2**21, 5 * batch * size[0] * size[1]):  # all channels together; five, the last group being smaller
        monkeypatch.setattr(prepared_head, "_GROUP", values)
        monkeypatch.setattr(prepared_head, "_STRIP", values // 8)
        torch.testing.assert_close(ready(maps), expected, rtol=1e-12, atol=1e-12)


def test_a_wrong_number_of_maps_is_refused_as_by_the_plain_head():
    _, ready = pair([4, 8], 3, 4)
    with pytest.raises(ValueError, match="got 1 maps, expected 2"):
        ready([torch.zeros(1, 4, 8, 8, dtype=torch.float64)])


def test_a_head_with_batch_norm_or_of_another_class_stays():
    with_norms, other = DAFormerHead([4, 8], 3, 4), nn.Conv2d(4, 3, 1)
    partly = folded(DAFormerHead([4, 8], 3, 4))
    partly.branches[2][0][1] = nn.BatchNorm2d(8)
    for head, kind in ((with_norms, DAFormerHead), (partly, DAFormerHead), (other, nn.Conv2d)):
        prepare_head(head)
        assert type(head) is kind


def peak(head: nn.Module, maps: list[Tensor]) -> int:
    """Bytes that tensors take at most during a call."""
    with profile(profile_memory=True) as found:
        head(maps)
    events = sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    held = most = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@torch.inference_mode()
def test_it_holds_less_than_the_joined_map(monkeypatch):
    widths, channels, size = [16, 32, 80, 128], 64, (96, 128)
    plain, ready = pair(widths, 19, channels, dtype=torch.float32)
    maps = maps_of(widths, size, 1, torch.float32)
    joined = 4 * len(widths) * channels * size[0] * size[1]
    assert 2 * joined < peak(plain, maps)
    monkeypatch.setattr(prepared_head, "_GROUP", 16 * size[0] * size[1])  # a quarter of a map, as of large maps
    monkeypatch.setattr(prepared_head, "_STRIP", 16 * size[0] * size[1])
    assert 0 < peak(ready, maps) < joined
