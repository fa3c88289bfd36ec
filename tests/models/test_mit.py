"""MiT as timm serves it, and against the implementation in Hugging Face transformers."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from transformers import SegformerConfig, SegformerModel

import icda  # noqa: F401  registers the encoders
from icda.models.mit import DEPTHS, rename_published, variant_of

PARAMETERS = {  # millions, encoder alone: SegFormer paper, table 6
    "mit_b0": 3.4,
    "mit_b1": 13.1,
    "mit_b2": 24.2,
    "mit_b3": 44.0,
    "mit_b4": 60.8,
    "mit_b5": 81.4,
}


def features(name: str, **options: object) -> nn.Module:
    return timm.create_model(name, features_only=True, **options).eval()


@pytest.mark.parametrize("name", DEPTHS)
def test_number_of_parameters_is_the_papers(name):
    with torch.device("meta"):
        encoder = timm.create_model(name, features_only=True)
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    assert count == pytest.approx(PARAMETERS[name], abs=0.15)


def test_listed_by_timm():
    assert set(DEPTHS) <= set(timm.list_models("mit_b*"))


def test_feature_info_and_options():
    encoder = features("mit_b0", in_chans=4, out_indices=(1, 3))
    assert encoder.feature_info.channels() == [64, 256]
    assert encoder.feature_info.reduction() == [8, 32]
    assert [tuple(m.shape) for m in encoder(torch.zeros(1, 4, 64, 96))] == [(1, 64, 8, 12), (1, 256, 2, 3)]


@pytest.mark.parametrize("size", [(64, 64), (65, 95), (33, 130)])
def test_any_size(size):
    maps = features("mit_b0")(torch.zeros(1, 3, *size))
    for i, m in enumerate(maps):
        stride = 4 * 2**i
        assert m.shape[2:] == tuple(-(-side // stride) for side in size)


def test_classifier_runs():
    assert timm.create_model("mit_b0", num_classes=7)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_stochastic_depth_rises_linearly_over_all_blocks():
    encoder = features("mit_b2", drop_path_rate=0.1)
    rates = [m.drop_prob for n, m in encoder.named_modules() if isinstance(m, DropPath) and n.endswith("drop_path1")]
    expected = [0.1 * i / 15 for i in range(16)]
    assert rates == pytest.approx(expected[1:])  # the first block has none


def test_epsilons():
    eps = {n: m.eps for n, m in features("mit_b0").named_modules() if isinstance(m, nn.LayerNorm)}
    for name, value in eps.items():
        inner = name.endswith(("patch_embed.norm", "downsample.norm", "attn.norm"))
        assert value == (1e-5 if inner else 1e-6), name


def test_initialisation():
    torch.manual_seed(0)
    block = features("mit_b1").stages_2.blocks[0]
    assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.mlp.dwconv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert block.attn.kv.bias.abs().max() == 0


def test_every_parameter_gets_a_gradient():
    encoder = features("mit_b0").train()
    sum(m.sum() for m in encoder(torch.randn(1, 3, 64, 64))).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_size_is_read_off_the_weights():
    for name in DEPTHS:
        with torch.device("meta"):
            assert variant_of(timm.create_model(name).state_dict()) == name


def test_weights_of_the_segformer_authors_are_read_through_timm(tmp_path):
    donor = timm.create_model("mit_b0")
    published = {}
    for name, value in donor.state_dict().items():
        name = name.replace("patch_embed.", "patch_embed1.", 1) if name.startswith("patch_embed.") else name
        for stage in range(4):
            name = name.replace(f"stages.{stage}.downsample.", f"patch_embed{stage + 1}.")
            name = name.replace(f"stages.{stage}.blocks.", f"block{stage + 1}.")
            name = name.replace(f"stages.{stage}.norm.", f"norm{stage + 1}.")
        published[name.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")] = value
    assert {rename_published(n) for n in published} == set(donor.state_dict())
    torch.save(published, tmp_path / "mit_b0.pth")
    encoder = timm.create_model(
        "mit_b0", pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(tmp_path / "mit_b0.pth")}
    )
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder.eval()(x)[-1], donor.eval().forward_intermediates(x)[1][-1])


def transformers_name(name: str) -> str:
    """The name in transformers of a parameter of ``features_only`` MiT (keys and values apart)."""
    if name.startswith("patch_embed."):
        return name.replace("patch_embed.norm", "stages.0.patch_embeddings.layer_norm").replace(
            "patch_embed.proj", "stages.0.patch_embeddings.proj"
        )
    for ours, theirs in (
        ("stages_", "stages."),
        ("downsample.norm", "patch_embeddings.layer_norm"),
        ("downsample.proj", "patch_embeddings.proj"),
        ("attn.sr.", "attention.sequence_reduction.sequence_reduction."),
        ("attn.norm.", "attention.sequence_reduction.layer_norm."),
        ("attn.proj.", "attention.o_proj."),
        ("attn.q.", "attention.q_proj."),
        ("norm1.", "layernorm_before."),
        ("norm2.", "layernorm_after."),
        ("mlp.dwconv.", "mlp.dwconv.dwconv."),
    ):
        name = name.replace(ours, theirs)
    if name.count(".") == 3 and ".norm." in name:
        name = name.replace(".norm.", ".layer_norm.")
    return name


@pytest.mark.parametrize("name", ["mit_b0", "mit_b5"])
@torch.no_grad()
def test_agrees_with_transformers(name):
    torch.manual_seed(0)
    ours = features(name)
    depths, widths = DEPTHS[name], ours.feature_info.channels()
    theirs = SegformerModel(SegformerConfig(depths=list(depths), hidden_sizes=widths, drop_path_rate=0.0)).eval()
    state = {}
    for key, value in ours.state_dict().items():
        if ".attn.kv." in key:
            stem, leaf = key.split(".attn.kv.")
            for letter, half in zip("kv", value.chunk(2), strict=True):
                state[transformers_name(f"{stem}.attention.{letter}_proj.{leaf}")] = half
        else:
            state[transformers_name(key)] = value
    theirs.load_state_dict(state, strict=True)
    for module in theirs.modules():  # theirs has 1e-5 everywhere; the original, and ours, 1e-6 outside embeddings
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    for module in ours.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    x = torch.randn(2, 3, 96, 160)
    expected = theirs(x, output_hidden_states=True).hidden_states
    for mine, other in zip(ours(x), expected, strict=True):
        torch.testing.assert_close(mine, other.reshape(mine.shape), rtol=0, atol=2e-5)
