"""Encoders from files: every container that MiT weights come in, what does not fit, and encoders of timm's own."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from icda.errors import UserError
from icda.models import build_model
from icda.weights.encoder import fill_encoder, read_encoder
from icda.weights.layouts import eps_remark, from_timm, shapes_of, to_timm

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def b0() -> State:
    """Weights of a MiT-B0 under our names."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes_of("mit_b0").items()}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def entries(*names: str) -> State:
    return {name: torch.ones(2) for name in names}


def copies(state: State) -> State:
    """A teacher's or frozen weights, whose values differ."""
    return {name: value + 1 for name, value in state.items()}


# Container -> content of the file, from the authors' layout of one encoder.
CONTAINERS: dict[str, Callable[[State], object]] = {
    "ImageNet file": lambda s: {**s, **entries("head.weight", "head.bias")},
    "SegFormer": lambda s: {
        "state_dict": under("backbone.", s)
        | entries("decode_head.linear_c1.proj.weight", "decode_head.linear_fuse.bn.num_batches_tracked"),
        "meta": {"iter": 160000},
    },
    "DAFormer": lambda s: {
        "state_dict": under("ema_model.backbone.", copies(s))
        | under("imnet_model.backbone.", copies(s))
        | under("model.backbone.", s)
        | entries("model.decode_head.conv_seg.weight", "imnet_model.decode_head.conv_seg.weight")
    },
    "HRDA": lambda s: (
        under("model.backbone.", s)
        | entries("model.decode_head.head.conv_seg.weight", "model.decode_head.scale_attention.conv_seg.weight")
    ),
    "ICDA": lambda s: {
        "state_dict": under("m_backbone.", copies(s))
        | under("imnet_backbone.", copies(s))
        | under("backbone.", s)
        | entries(
            "head.conv_seg.bias", "m_head.conv_seg.bias", "dat.down_projs.0.0.bias", "m_dat.down_projs.0.0.bias"
        ),
        "global_step": 40000,
        "pytorch-lightning_version": "1.5.10",
    },
    "Refign": lambda s: {
        "state_dict": under("backbone.", s)
        | entries("alignment_backbone.features.0.weight", "alignment_head.x.weight", "valid_metrics.val_x.mat")
        | entries("hrda_scale_attention.conv_seg.weight", "head.conv_seg.bias"),
    },
    "mmseg": lambda s: {
        "state_dict": under("backbone.", from_timm(to_timm(s, "segformer"), "mmseg"))
        | entries("decode_head.convs.0.conv.weight", "decode_head.fusion_conv.bn.num_batches_tracked"),
    },
    "mmseg's own MiT": lambda s: from_timm(to_timm(s, "segformer"), "mmseg"),
    "parallel training": lambda s: under("module.", s),
    "compiled": lambda s: {"model": under("_orig_mod.backbone.", s)},
    "half precision": lambda s: {n: t.half() for n, t in s.items()},
    "segmentation_models_pytorch": lambda s: under("encoder.", s) | entries("decoder.x", "segmentation_head.0.bias"),
    "timm": lambda s: to_timm(s, "segformer") | entries("head.weight"),
    "timm's features": lambda s: {n.replace("stages.", "stages_", 1): t for n, t in to_timm(s, "segformer").items()},
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(container, b0, tmp_path):
    if container == "half precision":
        b0 = {name: value.half().float() for name, value in b0.items()}
    content = CONTAINERS[container](from_timm(b0, "segformer"))
    torch.save(content, tmp_path / "weights.pth")
    found = read_encoder(tmp_path / "weights.pth")
    assert found.variant == "mit_b0"
    assert found.layout == ("mmseg" if "mmseg" in container else "timm" if "timm" in container else "segformer")
    assert found.state.keys() == b0.keys()
    assert all(torch.equal(found.state[n], t) and found.state[n].dtype == torch.float32 for n, t in b0.items())
    inner = next((content[key] for key in ("state_dict", "model") if key in content), content)
    tensors_per_encoder = len(from_timm(b0, found.layout))
    assert len(found.unused) == len(inner) - tensors_per_encoder  # each entry is the encoder's or known


@pytest.mark.parametrize("kind", [SegformerModel, SegformerForSemanticSegmentation, SegformerForImageClassification])
@pytest.mark.parametrize("form", ["folder", "file", "state dict"])
def test_hugging_face(kind, form, tmp_path):
    torch.manual_seed(0)
    model = kind(SegformerConfig())  # MiT-B0
    if form == "state dict":  # module names of transformers 5
        torch.save(model.state_dict(), tmp_path / "x.pt")
        found = read_encoder(tmp_path / "x.pt")
        assert found.layout == "huggingface5"
    else:
        model.save_pretrained(tmp_path)
        found = read_encoder(tmp_path / "model.safetensors" if form == "file" else tmp_path)
        assert found.layout == "huggingface"
    stages = model.stages if kind is SegformerModel else model.segformer.stages
    assert torch.equal(found.state["stages.3.norm.weight"], stages[3].layer_norm.weight)
    block = stages[1].blocks[1]
    kv = torch.cat([block.attention.k_proj.weight, block.attention.v_proj.weight])
    assert torch.equal(found.state["stages.1.blocks.1.attn.kv.weight"], kv)
    assert len(found.unused) == {SegformerModel: 0, SegformerForImageClassification: 2}.get(kind, 16)


def test_checkpoints_of_this_project(tmp_path):
    torch.manual_seed(0)
    small = {"head_options": {"channels": 8}, "dar_options": {"mlp_ratio": 1}}
    for name in ("mit_b0", "resnet18"):
        model = build_model(name, 5, **small)
        torch.save(
            {"format": 1, "student": model.state_dict(), "teacher": copies(model.state_dict())}, tmp_path / "best.pt"
        )
        encoder = timm.create_model(name, features_only=True, out_indices=tuple(range(-4, 0)))
        fill_encoder(encoder, name, tmp_path / "best.pt")
        own = encoder.state_dict()
        assert own and all(torch.equal(t, own[n]) for n, t in model.encoder.state_dict().items())
    with pytest.raises(UserError, match=r"holds no MiT encoder: none of its \d+ entries, such as .*encoder\."):
        read_encoder(tmp_path / "best.pt")


def drop(*beginnings: str) -> Callable[[State], State]:
    return lambda s: {n: t for n, t in s.items() if not n.startswith(beginnings)}


WRONG: dict[str, tuple[Callable[[State], object], str]] = {
    "another network": (
        lambda s: timm.create_model("resnet18").state_dict(),
        r"holds no MiT encoder: none of its 122 entries, such as conv1.weight, .*give weights of mit_b0 \.\. mit_b5",
    ),
    "half a file": (
        drop("block3.", "block4."),
        r"does not hold the weights of a whole MiT: no MiT has width 32 and \(2, 2, 0, 0\) blocks; nearest is mit_b0 "
        r"with \(2, 2, 2, 2\): it lacks 4 \(block3\.0, ",
    ),
    "no last norm": (
        drop("norm4."),
        r"not weights of mit_b0: of 176 entries 2 missing such as norm4\.weight;",
    ),
    "a missing half": (
        lambda s: drop("encoder.block.1.0.attention.self.value.")(from_timm(to_timm(s, "segformer"), "huggingface")),
        r"of 192 entries 2 missing such as encoder\.block\.1\.0\.attention\.self\.value\.weight;",
    ),
    "another size": (
        lambda s: {**s, "block1.0.mlp.fc1.weight": torch.zeros(64, 32)},
        r"1 of another size such as block1\.0\.mlp\.fc1\.weight with \(64, 32\) instead of \(128, 32\);",
    ),
    "a block more": (
        lambda s: {**s, **{n.replace("block3.1", "block3.2"): t for n, t in s.items() if n.startswith("block3.1.")}},
        r"nearest is mit_b0 .*has beyond it 1 \(block3\.2\)",
    ),
    "too much": (
        lambda s: {**s, "block1.0.attn.lora.weight": torch.zeros(2), "prompt": torch.zeros(1)},
        r"belong neither to a MiT in the layout segformer nor to .*: 2 \(block1\.0\.attn\.lora\.weight, prompt\)",
    ),
    "the teacher's alone": (
        lambda s: under("m_backbone.", s),
        r"holds a MiT only under m_backbone\., which is a mean teacher or a frozen copy",
    ),
    "two encoders": (
        lambda s: under("backbone.", s) | under("encoder.", s),
        r"holds 2 MiT encoders \(backbone\., encoder\.\); give a file of one",
    ),
    "copies that no checkpoint has": (
        lambda s: (
            under("backbone.", s) | entries("m_evil_head.x", "ema_evil.x", "imnet_backbone.zz.weight", "loss.x")
        ),
        r"nor to a known checkpoint around it: 4 \(m_evil_head\.x, ema_evil\.x, imnet_backbone\.zz\.weight, \.\.\.\)",
    ),
    "a stranger's names": (
        lambda s: {**s, "ev\nil" + "x" * 999: torch.zeros(1)},
        r"known checkpoint around it: 1 \(ev ilxxx[x]*\.\.\.\)",
    ),
    "no encoder but long names": (
        lambda s: {"x" * 5000 + str(i): torch.zeros(1) for i in range(9)},
        r"none of its 9 entries, such as x{77}\.\.\., ",
    ),
    "not a number": (
        lambda s: {**s, "norm2.bias": torch.full((64,), torch.nan)},
        r"not finite numbers \(NaN or infinite\): 1 \(norm2\.bias\)",
    ),
    "infinite": (
        lambda s: {n: t.half() * (1e6 if n == "patch_embed1.proj.weight" else 1) for n, t in s.items()},
        r"not finite numbers .*1 \(patch_embed1\.proj\.weight\)",
    ),
    "whole numbers": (
        lambda s: {n: (100 * t).char() for n, t in s.items()},
        r"is torch\.int8, expected floating-point",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_said_in_one_line(what, b0, tmp_path):
    change, message = WRONG[what]
    path = tmp_path / "weights.pth"
    torch.save(change(from_timm(b0, "segformer")), path)
    with pytest.raises(UserError, match=message) as caught:
        read_encoder(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    assert len(str(caught.value).removeprefix(str(path))) < 450  # the path is as long as it is
    encoder = timm.create_model("mit_b0", features_only=True)
    before = encoder.patch_embed.proj.weight.clone()
    with pytest.raises(UserError, match=message) as caught:
        fill_encoder(encoder, "mit_b0", path)
    assert str(caught.value).startswith(f"model.encoder.weights={path}")
    assert torch.equal(encoder.patch_embed.proj.weight, before)


def test_what_is_passed_over_is_logged(b0, tmp_path, caplog):
    content = CONTAINERS["ICDA"](from_timm(b0, "segformer"))
    torch.save({**content, "optimizer_states": [1]}, tmp_path / "icda.ckpt")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with caplog.at_level(logging.INFO, "icda.weights.encoder"):
        read_encoder(tmp_path / "icda.ckpt")
        for name, file in (("mit_b0", "icda.ckpt"), ("resnet18", "resnet18.pth")):
            fill_encoder(timm.create_model(name, features_only=True), name, tmp_path / file)
    read, filled, other = (record.getMessage() for record in caplog.records)
    said = "m_* (178 entries), imnet_* (176 entries), head (1 entry), dat (1 entry), optimizer_states"
    assert read == f"{tmp_path / 'icda.ckpt'}: passed over: {said}"
    assert filled == f"model.encoder.weights={read}"
    assert other.endswith("resnet18.pth: passed over: fc (2 entries)")


def test_another_size_of_mit_is_named(b0, tmp_path):
    torch.save(from_timm(b0, "mmseg"), tmp_path / "mit.pth")
    encoder = timm.create_model("mit_b1", features_only=True)
    message = r"the weights are those of mit_b0, model\.encoder\.name is mit_b1; give .*model\.encoder\.name=mit_b0$"
    with pytest.raises(UserError, match=message):
        fill_encoder(encoder, "mit_b1", tmp_path / "mit.pth")


@pytest.mark.parametrize("layout", ["segformer", "mmseg", "huggingface"])
@pytest.mark.parametrize("features", [True, False])
def test_filling_a_mit(layout, features, b0, tmp_path, caplog):
    torch.save(from_timm(b0, layout), tmp_path / "mit.pth")
    encoder = timm.create_model("mit_b0", features_only=features, **({} if features else {"num_classes": 0}))
    with caplog.at_level(logging.INFO, "icda.weights.encoder"):
        fill_encoder(encoder, "mit_b0", str(tmp_path / "mit.pth"))
    own = {n.replace("stages_", "stages.", 1): t for n, t in encoder.state_dict().items()}
    assert own.keys() == b0.keys() and all(torch.equal(own[n], t) for n, t in b0.items())
    remarks = [record.getMessage() for record in caplog.records]
    assert len(remarks) == (layout != "segformer")
    assert all(eps_remark(layout) in remark for remark in remarks)


@torch.no_grad()
def test_weights_of_segmentation_models_pytorch(tmp_path):
    torch.manual_seed(0)
    theirs = smp.Segformer("mit_b0", encoder_weights=None, classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "smp.pth")
    ours = timm.create_model("mit_b0", features_only=True).eval()
    fill_encoder(ours, "mit_b0", tmp_path / "smp.pth")
    x = torch.randn(1, 3, 64, 96)
    for mine, other in zip(ours(x), theirs.encoder(x)[2:], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=4e-6)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("resnet18", "whole"),
        ("resnet18", "parallel"),
        ("resnet18", "features"),
        ("convnext_atto", "whole"),
        ("convnext_atto", "features"),
        ("tf_efficientnet_lite0", "whole"),
        ("pvt_v2_b0", "features"),
        ("vit_tiny_patch16_224", "whole"),  # its extractor puts the whole model below "model"
        ("vit_tiny_patch16_224", "features"),
    ],
)
@torch.no_grad()
def test_other_encoders(name, form, tmp_path):
    torch.manual_seed(0)
    donor = timm.create_model(name, features_only=form == "features").eval()
    torch.save(under("module." if form == "parallel" else "", donor.state_dict()), tmp_path / "weights.pth")
    encoder = timm.create_model(name, features_only=True).eval()
    fill_encoder(encoder, name, tmp_path / "weights.pth")
    x = torch.randn(1, 3, 224, 224)
    expected = donor(x) if form == "features" else donor.forward_intermediates(x)[1]
    torch.testing.assert_close(encoder(x)[-1], expected[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: timm.create_model("resnet34").state_dict(),
            r"weights of resnet18: there are entries that it ",
        ),
        (
            lambda s: drop("layer4.")(s),
            r"not weights of resnet18: of 120 entries 25 missing such as layer4\.0\.conv1",
        ),
        (lambda s: {**s, "extra.weight": torch.zeros(1)}, r"entries that it does not have, 1 \(extra\.weight\)"),
        (lambda s: {**s, "conv1.weight": torch.zeros(64, 1, 7, 7)}, r"1 of another size such as conv1\.weight with"),
        (lambda s: {**s, "bn1.running_var": torch.full((64,), torch.inf)}, r"not finite.*bn1\.running_var"),
        (lambda s: under("backbone.", s), r"there are entries that it does not have, 102 \(backbone\."),
    ],
)
def test_other_encoders_with_what_does_not_fit(change, message, tmp_path):
    state = timm.create_model("resnet18").state_dict()
    torch.save(change(state), tmp_path / "weights.pth")
    encoder = timm.create_model("resnet18", features_only=True, out_indices=(-4, -3, -2, -1))
    with pytest.raises(UserError, match=message) as caught:
        fill_encoder(encoder, "resnet18", tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)
