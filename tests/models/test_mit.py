"""MiT as timm serves it, and against the implementation in Hugging Face transformers."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import DropPath
from timm.models.pvt_v2 import MlpWithDepthwiseConv
from torch import nn
from transformers import SegformerConfig, SegformerModel

from icda.errors import UserError
from icda.models.mit import GELULinear, checkpoint_filter_fn
from icda.weights.layouts import DEPTHS

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
    assert set(checkpoint_filter_fn(published, donor)) == set(donor.state_dict())
    torch.save(published, tmp_path / "mit_b0.pth")
    encoder = timm.create_model(
        "mit_b0", pretrained=True, features_only=True, pretrained_cfg_overlay={"file": str(tmp_path / "mit_b0.pth")}
    )
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder.eval()(x)[-1], donor.eval().forward_intermediates(x)[1][-1])


def test_a_file_that_lacks_weights_is_refused_although_timm_would_not_notice(tmp_path):
    state = {k: v for k, v in timm.create_model("mit_b0").state_dict().items() if "stages.3.blocks.1.mlp" not in k}
    overlay = {"state_dict": state}
    with pytest.raises(UserError, match=r"of 176 entries 6 missing such as stages\.3\.blocks\.1\.mlp"):
        timm.create_model("mit_b0", pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)
    larger = timm.create_model("mit_b0", embed_dims=(32, 64, 160, 128)).state_dict()
    with pytest.raises(UserError, match=r"of another size such as stages\.3\..* instead of \(256"):
        checkpoint_filter_fn(larger, timm.create_model("mit_b0"))
    overlay = {"state_dict": timm.create_model("resnet18").state_dict()}
    with pytest.raises(UserError, match=r"not those of a MiT: their names are such as conv1\.weight, "):
        timm.create_model("mit_b0", pretrained=True, features_only=True, pretrained_cfg_overlay=overlay)


def test_other_numbers_of_channels_stay_possible():
    donor = timm.create_model("mit_b0")
    encoder = timm.create_model(
        "mit_b0", pretrained=True, in_chans=1, pretrained_cfg_overlay={"state_dict": donor.state_dict()}
    )
    torch.testing.assert_close(encoder.patch_embed.proj.weight, donor.patch_embed.proj.weight.sum(1, keepdim=True))


def test_pretrained_weights_are_the_segformer_authors():
    for name in DEPTHS:
        config = timm.get_pretrained_cfg(name)
        assert config.hf_hub_id == "nvidia/" + name.replace("_", "-")
        assert timm.get_pretrained_cfg(f"{name}.nvidia_in1k") == config


def transformers_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our weights in the layout of the files that transformers reads and writes, whatever its version."""
    renamed = {}
    for name, value in state.items():
        name = re.sub(r"^patch_embed\.", "stages_0.downsample.", name)
        stage, rest = re.match(r"stages_(\d)\.(.*)", name).groups()
        for ours, theirs in (
            (r"^downsample\.norm", f"patch_embeddings.{stage}.layer_norm"),
            (r"^downsample\.proj", f"patch_embeddings.{stage}.proj"),
            (r"^norm", f"layer_norm.{stage}"),
            (r"^blocks\.(\d+)\.norm([12])", rf"block.{stage}.\1.layer_norm_\2"),
            (r"^blocks\.(\d+)\.attn\.q", rf"block.{stage}.\1.attention.self.query"),
            (r"^blocks\.(\d+)\.attn\.sr", rf"block.{stage}.\1.attention.self.sr"),
            (r"^blocks\.(\d+)\.attn\.norm", rf"block.{stage}.\1.attention.self.layer_norm"),
            (r"^blocks\.(\d+)\.attn\.proj", rf"block.{stage}.\1.attention.output.dense"),
            (r"^blocks\.(\d+)\.mlp\.fc([12])", rf"block.{stage}.\1.mlp.dense\2"),
            (r"^blocks\.(\d+)\.mlp\.dwconv", rf"block.{stage}.\1.mlp.dwconv.dwconv"),
        ):
            rest = re.sub(ours, theirs, rest)
        if match := re.match(r"blocks\.(\d+)\.attn\.kv\.(\w+)", rest):
            for kind, half in zip(("key", "value"), value.chunk(2), strict=True):
                renamed[f"encoder.block.{stage}.{match[1]}.attention.self.{kind}.{match[2]}"] = half.contiguous()
        else:
            renamed[f"encoder.{rest}"] = value
    return renamed


@pytest.mark.parametrize("name", ["mit_b0", pytest.param("mit_b5", marks=pytest.mark.slow)])
@torch.no_grad()
def test_agrees_with_transformers(name, tmp_path):
    torch.manual_seed(0)
    ours = features(name)
    config = SegformerConfig(depths=list(DEPTHS[name]), hidden_sizes=ours.feature_info.channels(), drop_path_rate=0.0)
    config.save_pretrained(tmp_path)
    save_file(transformers_state(ours.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, loading = SegformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    for module in ours.modules():  # theirs has 1e-5 everywhere; the original, and ours, 1e-6 outside embeddings
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5
    x = torch.randn(2, 3, 96, 160)
    expected = theirs.eval()(x, output_hidden_states=True).hidden_states
    for mine, other in zip(ours(x), expected, strict=True):
        torch.testing.assert_close(mine, other.reshape(mine.shape), rtol=0, atol=2e-5)


@pytest.mark.parametrize("frozen", [(), ("x",), ("weight", "bias"), ("weight",)])
def test_gelu_and_a_linear_layer_are_the_two_in_turn(frozen):
    torch.manual_seed(0)
    layer = GELULinear(6, 4).double()
    plain = nn.Sequential(nn.GELU(), nn.Linear(6, 4).double())
    plain[1].load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    results = []
    for module, linear in ((layer, layer), (plain, plain[1])):
        leaves = {"x": x.clone(), "weight": linear.weight, "bias": linear.bias}
        for name, leaf in leaves.items():
            leaf.requires_grad_(name not in frozen)
        y = module(leaves["x"])
        y.sin().sum().backward()
        results.append([y, *(leaf.grad for leaf in leaves.values())])
    for ours, expected in zip(*results, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


def test_gelu_and_a_linear_layer_in_half_precision():
    torch.manual_seed(0)
    layer, x = GELULinear(64, 32), torch.randn(128, 64, requires_grad=True)
    plain = nn.Sequential(nn.GELU(), nn.Linear(64, 32))
    plain[1].load_state_dict(layer.state_dict())
    results = []
    for module, linear in ((layer, layer), (plain, plain[1])):
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        y.float().square().mean().backward()
        results.append([y.float(), x.grad, linear.weight.grad, linear.bias.grad])
        assert y.dtype == torch.bfloat16 and linear.weight.grad.dtype == torch.float32
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).norm() < 0.01 * expected.norm()


def test_what_leaves_gelu_is_not_kept():
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    kept = []
    for fused in (False, True):
        encoder = timm.create_model("mit_b0", features_only=True, drop_path_rate=0.0).train()
        mlps = [m for m in encoder.modules() if isinstance(m, MlpWithDepthwiseConv)]
        assert len(mlps) == 8 and all(type(m.fc2) is GELULinear for m in mlps)
        for mlp in mlps if not fused else ():
            mlp.act, mlp.fc2.__class__ = nn.GELU(), nn.Linear
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encoder(torch.randn(1, 3, 64, 64))
        kept.append(sum(t.untyped_storage().nbytes() for t in saved.values()))
    wide = sum(256 // 4**i * 2 * 4 * width * 4 for i, width in enumerate((32, 64, 160, 256)))  # bytes of all outputs
    assert kept[0] - kept[1] == wide


def test_dropout_between_gelu_and_the_linear_layer_stays_there():
    encoder = timm.create_model("mit_b0", features_only=True, proj_drop_rate=0.1)
    mlps = [m for m in encoder.modules() if isinstance(m, MlpWithDepthwiseConv)]
    assert all(type(m.fc2) is nn.Linear and isinstance(m.act, nn.GELU) for m in mlps)
