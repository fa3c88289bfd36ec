"""Recomputed activations: the same gradients and statistics, bit for bit, from less memory."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
from test_step import DRAWS, batch, small_step
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from icda.errors import UserError
from icda.models import DAFormerHead
from icda.models.segmentation import create_encoder
from icda.training.precision import Precision
from icda.training.recompute import recompute_blocks, recompute_branches, statistics_kept
from icda.training.sync_batch_norm import SyncBatchNorm

ENCODERS = ("mit_b0", "resnet18", "tf_efficientnet_lite0", "convnext_atto")


def saved_bytes(function) -> tuple[object, int]:
    """What a function returns, and how much its graph keeps for the backward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, or another would get its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = function()
    return value, sum(t.untyped_storage().nbytes() for t in storages.values())


def one_pass(encoder, name):
    """Gradients, buffers and the next random number after a forward and a backward pass."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # stochastic depth
    with Precision(name, torch.device("cpu")).autocast():
        total = sum((m.float() ** 2).mean() for m in encoder(images))
    with statistics_kept(encoder):
        total.backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters()}
    return gradients, dict(encoder.named_buffers()), torch.rand(3)


@pytest.mark.parametrize(("name", "precision"), [*((name, "fp32") for name in ENCODERS), ("mit_b0", "bf16")])
def test_an_encoder_trains_the_same(name, precision):
    plain = create_encoder(name, drop_path_rate=0.3).train()
    low = copy.deepcopy(plain)
    recompute_blocks(low)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected, found = one_pass(plain, precision), one_pass(low, precision)
    assert all(torch.equal(found[0][n], g) for n, g in expected[0].items())
    assert all(torch.equal(found[1][n], b) for n, b in expected[1].items())
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("name", ENCODERS)
def test_less_is_kept(name):
    encoder = create_encoder(name).train()
    images = torch.randn(2, 3, 64, 96)
    _, plain = saved_bytes(lambda: encoder(images))
    recompute_blocks(encoder)
    _, low = saved_bytes(lambda: encoder(images))
    assert low < 0.75 * plain


@pytest.mark.parametrize("name", ["mit_b0", "resnet18"])
def test_without_gradients_nothing_changes(name):
    plain = create_encoder(name).eval()
    low = copy.deepcopy(plain)
    recompute_blocks(low)
    again = copy.deepcopy(low).train().eval()
    images = torch.randn(1, 3, 64, 96)
    for context in (torch.no_grad(), torch.inference_mode()):
        with warnings.catch_warnings(), context:
            warnings.simplefilter("error")
            for encoder in (low, again):
                assert all(torch.equal(a, b) for a, b in zip(plain(images), encoder(images), strict=True))
    assert list(low.state_dict()) == list(plain.state_dict())


def test_an_encoder_that_offers_none_is_named():
    with pytest.raises(UserError, match="memory=low, but the encoder hrnet_w18_small offers no activation"):
        recompute_blocks(timm.create_model("hrnet_w18_small", features_only=True))


def averaging(head: nn.Module) -> nn.Module:
    """With running statistics that are averages of all batches."""
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    return head


def of_processes(head: nn.Module) -> nn.Module:
    """With the batch norm of several processes, of which there is one."""
    for sequence in [m for m in head.modules() if isinstance(m, nn.Sequential)]:
        for i, module in enumerate(sequence):
            if type(module) is nn.BatchNorm2d:
                sequence[i] = SyncBatchNorm(module.num_features)
    return head


@pytest.mark.parametrize(
    ("constant", "norms"),  # weights as DAR's branch has them, or not; batch norm as with several processes
    [(False, lambda head: head), (True, lambda head: head), (False, averaging), (False, of_processes)],
)
def test_a_head_trains_the_same_and_keeps_less(constant, norms):
    torch.manual_seed(0)
    plain = norms(DAFormerHead((4, 8, 16, 32), 5, channels=16)).double().train()
    low = copy.deepcopy(plain)
    recompute_branches(low)
    images = [
        torch.randn(2, w, 32 >> i, 32 >> i, dtype=torch.float64, requires_grad=True)
        for i, w in enumerate((4, 8, 16, 32))
    ]
    kept, results = [], []
    for head in (plain, low):
        torch.manual_seed(1)  # dropout
        weights = {n: p.detach() if constant else p for n, p in head.named_parameters()}
        logits, size = saved_bytes(lambda head=head, weights=weights: functional_call(head, weights, (images,)))
        with statistics_kept(head):
            of_images = torch.autograd.grad(logits.square().sum(), images, retain_graph=True)
            if not constant:
                logits.square().sum().backward()
        kept.append(size)
        results.append([logits, *of_images, *head.buffers(), *(p.grad for p in head.parameters() if not constant)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)  # parts of channels are added up one by one
    assert low.branches[1][0][1].num_batches_tracked == 1
    assert kept[1] < 0.6 * kept[0]


def test_half_precision_is_no_worse_in_parts():
    torch.manual_seed(0)
    head = DAFormerHead((4, 8, 16, 32), 5, channels=64).train()
    head.dropout.p = 0.0
    images = [torch.randn(2, w, 32 >> i, 32 >> i) for i, w in enumerate((4, 8, 16, 32))]
    exact = head(images).detach()
    errors = []
    for where in (None, "everywhere"):
        head.recompute = where
        with torch.autocast("cpu", torch.bfloat16):
            errors.append((head(images).float() - exact).square().mean().sqrt())
    assert 0 < errors[1] < 1.2 * errors[0]


def test_recomputation_is_for_a_type_of_device_or_everywhere():
    head = DAFormerHead((4, 8, 16, 32), 5, channels=16).train()
    images = [torch.randn(2, w, 32 >> i, 32 >> i) for i, w in enumerate((4, 8, 16, 32))]
    kept = []
    for where in ("another", "cpu", "everywhere"):
        recompute_branches(head, where)
        kept.append(saved_bytes(lambda: head(images))[1])
    assert kept[1] == kept[2] < 0.6 * kept[0]


@pytest.mark.parametrize(
    "make",
    [
        nn.BatchNorm2d,
        lambda width: nn.BatchNorm2d(width, momentum=None),
        nn.SyncBatchNorm,
        timm.layers.BatchNormAct2d,
        lambda width: nn.BatchNorm2d(width, track_running_stats=False),
    ],
)
def test_statistics_are_kept_and_the_outcome_is_that_of_training(make):
    torch.manual_seed(0)
    norm = make(4).train()
    x = torch.randn(3, 4, 5, 5) * 3 + 1
    norm(x)
    before, buffers = copy.deepcopy(norm.state_dict()), dict(norm.named_buffers())
    expected = copy.deepcopy(norm)(x)
    with statistics_kept(norm):
        assert torch.equal(norm(x), expected)
        norm(x * float("inf"))  # a batch that would spoil them for good
    assert all(torch.equal(value, before[n]) for n, value in norm.state_dict().items())
    assert all(buffer is buffers[n] for n, buffer in norm.named_buffers())
    norm(x)
    assert not norm.track_running_stats or norm.num_batches_tracked == before["num_batches_tracked"] + 1


def test_statistics_return_after_an_error():
    network = create_encoder("resnet18").train()
    buffers = dict(network.named_buffers())
    with pytest.raises(RuntimeError, match="stop"), statistics_kept(network):
        network(torch.randn(2, 3, 64, 64))
        raise RuntimeError("stop")
    assert all(buffer is buffers[n] for n, buffer in network.named_buffers())
    assert all(m.num_batches_tracked == 0 for m in network.modules() if isinstance(m, _BatchNorm))


@pytest.mark.parametrize(("encoder", "precision"), [("test_efficientnet", "bf16")])
def test_a_whole_step_is_the_same(loss_config, encoder, precision):
    loss, results = loss_config(), []
    for low_memory in (False, True):
        method = small_step(loss, encoder=encoder, low_memory=low_memory)
        torch.manual_seed(3)
        with Precision(precision, torch.device("cpu")).autocast():
            rest, terms = method(batch(loss), 5, DRAWS)
        method.finish(rest)
        gradients = {n: p.grad for n, p in method.student.named_parameters()}
        results.append({**terms, **gradients, **{f"buffer {n}": b for n, b in method.named_buffers()}})
    assert all(torch.equal(results[1][n], value) for n, value in results[0].items())
