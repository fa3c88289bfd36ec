"""Reading the published checkpoint: every name has its place, and what does not fit is said."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import segmentation_models_pytorch as smp
import torch
from conftest import REFERENCE
from reference import recipe
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from icda.errors import UserError
from icda.interop import (
    UNUSED,
    is_published,
    load_encoder,
    load_published,
    load_segformer,
    read_published,
    rename,
    to_published,
)
from icda.weights.files import read_weights
from icda.weights.layouts import DEPTHS, from_timm, shapes_of, to_timm

State = dict[str, Tensor]

KEYS = json.loads((REFERENCE / "checkpoint_keys_mit_b5.json").read_text())


def test_every_published_name_of_b5_has_its_place():
    from icda.models import build_model

    with torch.device("meta"):
        ours = {
            n: list(t.shape) for n, t in build_model("mit_b5", 19).state_dict().items() if n not in ("mean", "std")
        }
    renamed = {rename(n): s for n, s in KEYS.items() if not UNUSED.match(n)}
    assert renamed == ours
    assert len(KEYS) - len(renamed) == 8  # per stage: position table, its index, and a norm of two tensors


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), (3, 4, 6, 3)])
def test_size_is_read_off_and_values_arrive(depths):
    state = recipe.state_dict(recipe.published_shapes(KEYS, depths))
    model = load_published({"state_dict": {**state, "m_head.x": torch.zeros(1), "epoch": torch.zeros(1)}})
    assert len(model.encoder.stages_2.blocks) == depths[2]
    torch.testing.assert_close(model.head.classifier.bias, recipe.weight("head.conv_seg.bias", (19,)))
    assert not model.training


def test_lightning_file_and_model_without_dar(tmp_path, published_b1):
    state = {n: t for n, t in published_b1.items() if not n.startswith("dat.")}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "icda.ckpt")
    assert load_published(tmp_path / "icda.ckpt").dar is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.conv_seg.bias"), "missing 1 .*head.classifier.bias"),
        (lambda s: s.update({"dat.stages.0.extra": torch.zeros(1)}), "unknown 1 .*dat.stages.0.extra"),
        (lambda s: s.update({"dat.down_projs.0.0.bias": torch.zeros(3)}), "does not fit mit_b1: .*size mismatch"),
        (lambda s: s.pop("backbone.patch_embed1.proj.weight"), "not a published ICDA checkpoint"),
        (lambda s: [s.pop(n) for n in list(s) if "block3.1" in n], "no MiT has"),
    ],
)
def test_what_does_not_fit_is_named(published_b1, change, message):
    state = dict(published_b1)
    change(state)
    with pytest.raises(UserError, match=message):
        load_published(state)


def test_other_numbers_of_classes_and_other_files(published_b1, tmp_path):
    with pytest.raises(UserError, match="head of 19 classes, expected num_classes=11"):
        load_published(published_b1, num_classes=11)
    (tmp_path / "page.ckpt").write_text("<html>not a checkpoint</html>")
    with pytest.raises(UserError, match="is a web page, not weights"):
        load_published(tmp_path / "page.ckpt")
    with pytest.raises(UserError, match="there is no file"):
        load_published(tmp_path / "none.ckpt")


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def daformer(published: State, prefix: str = "model.") -> State:
    """A published state dict under the names of DAFormer's checkpoints, which have no DAR."""
    state = {n.replace("head.", "decode_head.", 1): t for n, t in published.items() if not n.startswith("dat.")}
    return under(prefix, state)


def lightning(student: State, teacher: State, frozen: State) -> dict[str, object]:
    """What Lightning writes for the published code, reduced to what matters; Refign's extras included."""
    extras = ("alignment_head.x.weight", "alignment_backbone.features.0.weight", "valid_metrics.val_ACDC_IoU.confmat")
    state = (
        student | under("m_", teacher) | {n.replace("backbone", "imnet_backbone", 1): t for n, t in frozen.items()}
    )
    return {
        "epoch": 0,
        "global_step": 40000,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": state | {name: torch.zeros(1) for name in extras},
        "optimizer_states": [{"state": {0: {"step": 40000}}, "param_groups": [{"lr": 6e-5}]}],
        "hparams_name": "kwargs",
    }


def head_logits(state: State, maps: list[Tensor]) -> Tensor:
    """DAFormer's head straight from the published names (DAFormer, figure 3; batch norm in evaluation)."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            state[f"head.fuse_layer.{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    def conv(x: Tensor, name: str, **options: int) -> Tensor:
        return norm(F.conv2d(x, state[f"head.fuse_layer.{name}.conv.weight"], **options), name)

    embedded = []
    for i, x in enumerate(maps):
        linear = (state[f"head.embed_layers.{i}.proj.{leaf}"] for leaf in ("weight", "bias"))
        x = F.linear(x.permute(0, 2, 3, 1), *linear).permute(0, 3, 1, 2)
        embedded.append(F.interpolate(x, maps[0].shape[2:], mode="bilinear", align_corners=False))
    x = torch.cat(embedded, 1)
    branches = [conv(x, "aspp_modules.0")]
    for i, dilation in ((1, 6), (2, 12), (3, 18)):
        module = f"aspp_modules.{i}"
        depthwise = {"padding": dilation, "dilation": dilation, "groups": x.shape[1]}
        branches.append(conv(conv(x, f"{module}.depthwise_conv", **depthwise), f"{module}.pointwise_conv"))
    x = conv(torch.cat(branches, 1), "bottleneck", padding=1)
    return F.conv2d(x, state["head.conv_seg.weight"], state["head.conv_seg.bias"])


def authors_maps(variant: str, backbone: State, x: Tensor) -> list[Tensor]:
    """Maps of another implementation of the authors' MiT, which has their names."""
    encoder = smp.encoders.get_encoder(variant, weights=None).eval()
    missing, unexpected = encoder.load_state_dict(backbone)
    assert not missing and not unexpected
    return encoder(x)[2:]


@pytest.mark.parametrize("variant", ["mit_b1", pytest.param("mit_b5", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_checkpoint_gives_what_an_independent_computation_gives(variant, tmp_path):
    shapes = recipe.published_shapes(KEYS, DEPTHS[variant])
    student = recipe.state_dict(shapes)
    other = {n: t + 1 if t.is_floating_point() else t for n, t in student.items()}
    backbone = {n.removeprefix("backbone."): t for n, t in student.items() if n.startswith("backbone.")}
    frozen = under("backbone.", {n: t + 2 for n, t in backbone.items()})
    torch.save(lightning(student, other, frozen), tmp_path / "ICDA.ckpt")
    model = load_published(tmp_path / "ICDA.ckpt")
    assert all(torch.equal(t, student[n]) for n, t in to_published(model.state_dict()).items())
    x = recipe.image("odd", (1, 3, 70, 109))
    maps = authors_maps(variant, backbone, x)
    for mine, theirs in zip(model.encoder(x), maps, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    logits = head_logits(student, maps)
    torch.testing.assert_close(model.head(maps), logits, rtol=1e-5, atol=1e-5)
    whole = F.interpolate(logits, (70, 109), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), whole, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def checkpoint(published_b1, tmp_path_factory):
    """A Lightning file whose teacher and frozen encoder differ from the student."""
    teacher = {n: t + 1 if t.is_floating_point() else t for n, t in published_b1.items()}
    frozen = {n: t + 2 for n, t in published_b1.items() if n.startswith("backbone.")}
    path = tmp_path_factory.mktemp("interop") / "ICDA.ckpt"
    torch.save(lightning(published_b1, teacher, frozen), path)
    return path


def test_all_that_a_checkpoint_holds(checkpoint, published_b1):
    found = read_published(checkpoint)
    assert (found.variant, found.num_classes, found.channels) == ("mit_b1", 19, 256)
    assert found.with_dar and found.step == 40000
    assert found.teacher is not None and found.frozen_encoder is not None
    name = "backbone.block2.1.attn.kv.weight"
    ours = "stages_1.blocks.1.attn.kv.weight"
    assert torch.equal(found.student[f"encoder.{ours}"], published_b1[name])
    assert torch.equal(found.teacher[f"encoder.{ours}"], published_b1[name] + 1)
    assert torch.equal(found.frozen_encoder[ours], published_b1[name] + 2)
    model = load_published(checkpoint)
    model.load_state_dict(found.student)  # complete, the normalisation included
    model.encoder.load_state_dict(found.frozen_encoder)
    bare = read_published(published_b1)
    assert bare.teacher is None and bare.frozen_encoder is None and bare.step is None


def test_the_teacher(checkpoint, published_b1):
    student, teacher = load_published(checkpoint), load_published(checkpoint, teacher=True)
    assert torch.equal(teacher.head.classifier.bias, student.head.classifier.bias + 1)
    assert torch.equal(teacher.dar.stages[0].project[0].bias, student.dar.stages[0].project[0].bias + 1)
    assert not teacher.training
    with pytest.raises(UserError, match=r"holds no mean teacher \(m_backbone\.\*, m_head\.\*\); use teacher=False"):
        load_published(published_b1, teacher=True)
    with pytest.raises(UserError, match=r"does not fit mit_b1: missing 2 \(head\.classifier\."):
        half = {n: t for n, t in under("m_", published_b1).items() if "conv_seg" not in n}
        load_published(published_b1 | half, teacher=True)


def test_round_trip_is_exact(published_b1):
    back = to_published(load_published(published_b1).state_dict())
    assert set(published_b1) - set(back) == {n for n in published_b1 if UNUSED.match(n)}
    assert all(torch.equal(t, published_b1[n]) and t.dtype == published_b1[n].dtype for n, t in back.items())


def test_every_name_of_b5_goes_back():
    from icda.models import build_model

    with torch.device("meta"):
        back = to_published(build_model("mit_b5", 19).state_dict())
    assert {n: list(t.shape) for n, t in back.items()} == {n: s for n, s in KEYS.items() if not UNUSED.match(n)}


def test_what_has_no_published_name_is_not_given_one():
    from icda.models import build_model

    small = {"head_options": {"channels": 8}, "dar_options": {"mlp_ratio": 1}}
    with pytest.raises(UserError, match=r"encoder is no MiT, its entries are such as \d+ \(conv1\.weight"):
        to_published(build_model("resnet18", 3, **small).state_dict())
    state = build_model("mit_b0", 3, **small).state_dict()
    with pytest.raises(UserError, match=r"entry extra\.bias has no published name"):
        to_published(state | {"extra.bias": torch.zeros(1)})


def test_daformer_checkpoints(published_b1, tmp_path):
    other = {n: t + 1 if t.is_floating_point() else t for n, t in published_b1.items()}
    state = daformer(published_b1) | daformer(other, "ema_model.") | daformer(other, "imnet_model.")
    torch.save({"meta": {"iter": 40000, "CLASSES": ("road",)}, "state_dict": state}, tmp_path / "daformer.pth")
    found = read_published(tmp_path / "daformer.pth")
    assert found.step == 40000 and not found.with_dar
    assert found.frozen_encoder is not None
    assert {n.replace("stages_", "stages.", 1) for n in found.frozen_encoder} == set(shapes_of("mit_b1"))
    model = load_published(tmp_path / "daformer.pth")
    assert model.dar is None
    expected = {n: t for n, t in published_b1.items() if not n.startswith("dat.")}
    back = to_published(model.state_dict())
    assert back.keys() == expected.keys() and all(torch.equal(back[n], t) for n, t in expected.items())
    teacher = load_published(tmp_path / "daformer.pth", teacher=True)
    assert torch.equal(teacher.head.classifier.bias, model.head.classifier.bias + 1)


def test_batch_counters_may_be_missing_and_precision_is_single(published_b1):
    state = {n: t.half() for n, t in published_b1.items() if not n.endswith("num_batches_tracked")}
    model = load_published(state)
    assert {t.dtype for n, t in model.state_dict().items() if "num_batches" not in n} == {torch.float32}
    assert torch.equal(model.head.classifier.bias, published_b1["head.conv_seg.bias"].half().float())


def segformer_state() -> State:
    torch.manual_seed(0)
    return SegformerForSemanticSegmentation(SegformerConfig()).state_dict()


REFUSED: dict[str, tuple[Callable[[State], object], str]] = {
    "HRDA": (
        lambda s: under(
            "model.", {n.replace("head.", "decode_head.head.", 1): t for n, t in s.items() if "dat" not in n}
        ),
        r"multi-resolution head \(HRDA, MIC\): it has \d+ \(decode_head\.head\..*load_encoder reads its encoder",
    ),
    "Refign with HRDA": (
        lambda s: s | {"hrda_scale_attention.conv_seg.weight": torch.zeros(1)},
        r"multi-resolution head \(HRDA, MIC\): it has 1 \(hrda_scale_attention\.",
    ),
    "SegFormer": (
        lambda s: (
            {n: t for n, t in s.items() if n.startswith("backbone.")}
            | {"decode_head.linear_c1.proj.weight": torch.zeros(1)}
        ),
        r"is a SegFormer segmentation checkpoint: .*use model\.encoder\.weights=PATH or .*load_segformer",
    ),
    "Hugging Face's SegFormer": (lambda s: segformer_state(), r"is a SegFormer segmentation checkpoint"),
    "an encoder alone": (
        lambda s: {n.removeprefix("backbone."): t for n, t in s.items() if n.startswith("backbone.")},
        r"is not a published ICDA checkpoint .*icda\.interop\.load_encoder reads an encoder alone",
    ),
    "a strange part": (
        lambda s: s | {"depth_head.conv.weight": torch.zeros(1)},
        r"entries that no published ICDA or DAFormer checkpoint has: 1 \(depth_head\.conv\.weight\)",
    ),
    "half a head": (
        lambda s: {n: t for n, t in s.items() if "aspp_modules" not in n},
        r"does not fit mit_b1: missing \d+ \(head\.branches\.0\.0\.weight, ",
    ),
    "half an encoder": (
        lambda s: {n: t for n, t in s.items() if not n.startswith("backbone.block4")},
        r"no MiT has width 64 and \(2, 2, 2, 0\) blocks; nearest is mit_b1 .*lacks 2 \(stages\.3\.blocks\.0",
    ),
    "a wider MiT": (
        lambda s: s | {"backbone.patch_embed1.proj.weight": torch.zeros(96, 3, 7, 7)},
        r"not a published ICDA checkpoint \(no MiT has width 96",
    ),
    "another width within": (
        lambda s: s | {"backbone.block1.0.attn.q.weight": torch.zeros(32, 32)},
        r"does not fit mit_b1: size mismatch of 1 \(encoder\.stages_0\.blocks\.0\.attn\.q\.weight\), .*\(32, 32\)",
    ),
    "too much within": (
        lambda s: s | {"backbone.block1.0.attn.lora": torch.zeros(1)},
        r"does not fit mit_b1: .*unknown 1 \(encoder\.block1\.0\.attn\.lora\)",
    ),
    "not a number": (
        lambda s: s | {"head.conv_seg.bias": torch.full((19,), torch.nan)},
        r"not finite numbers \(NaN or infinite\): 1 \(head\.classifier\.bias\)",
    ),
    "quantised": (
        lambda s: s | {"head.conv_seg.bias": torch.zeros(19, dtype=torch.int8)},
        r"head\.classifier\.bias is torch\.int8, expected floating-point numbers",
    ),
    "no weights": (lambda s: {"epoch": 3}, "holds no weights"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_said_in_one_line(what, published_b1):
    change, message = REFUSED[what]
    with pytest.raises(UserError, match=message) as caught:
        load_published(change(dict(published_b1)), name="the file")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("the file")
    assert len(str(caught.value)) < 500


def test_which_contents_are_published(checkpoint, published_b1):
    assert is_published(read_weights(checkpoint)) and is_published(published_b1)
    assert is_published({"state_dict": daformer(published_b1)})
    assert is_published(segformer_state())  # which read_published can say more about
    encoder = {n.removeprefix("backbone."): t for n, t in published_b1.items() if n.startswith("backbone.")}
    for other in (encoder, {"format": 1, "student": load_published(published_b1).state_dict()}, {}, None, [1]):
        assert not is_published(other)


HUB = (SegformerModel, SegformerForSemanticSegmentation, SegformerForImageClassification)


@pytest.mark.parametrize("kind", HUB)
@torch.no_grad()
def test_encoders_of_hugging_face(kind, tmp_path):
    torch.manual_seed(0)
    model = kind(SegformerConfig(reshape_last_stage=True)).eval()
    for parameter in model.parameters():  # biases and norms come out of the constructor alike
        parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    x = torch.randn(1, 3, 70, 109)
    encoder = model if kind is SegformerModel else model.segformer
    expected = encoder(x, output_hidden_states=True).hidden_states
    for mine, theirs in zip(load_encoder(tmp_path, eps="huggingface")(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=4e-6)
    for mine, theirs in zip(load_encoder(tmp_path)(x), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    if kind is SegformerForSemanticSegmentation:
        torch.testing.assert_close(load_segformer(tmp_path, "huggingface")(x)[-1], expected[-1], rtol=0, atol=4e-6)
    else:
        with pytest.raises(UserError, match=r"beside a mit_b0 it has no decode head .*load_encoder for an "):
            load_segformer(tmp_path)


@pytest.mark.parametrize("head", ["decode_head.linear_c1.proj.weight", "decode_head.convs.0.conv.weight"])
def test_segformer_checkpoints_of_the_authors_and_mmseg(head, tmp_path):
    state = {name: torch.randn(shape) for name, shape in shapes_of("mit_b0").items()}
    layout = "mmseg" if "convs" in head else "segformer"
    content = under("backbone.", from_timm(state, layout)) | {head: torch.zeros(1)}
    torch.save({"state_dict": content, "meta": {}}, tmp_path / "segformer.b0.pth")
    encoder = load_segformer(tmp_path / "segformer.b0.pth", eps=layout)
    own = {n.replace("stages_", "stages.", 1): t for n, t in encoder.state_dict().items()}
    assert all(torch.equal(own[n], t) for n, t in state.items())
    assert {m.eps for m in encoder.modules() if isinstance(m, nn.LayerNorm)} == (
        {1e-6} if layout == "mmseg" else {1e-5, 1e-6}
    )


def test_encoders_of_published_checkpoints(checkpoint, published_b1):
    encoder = load_encoder(checkpoint)
    ours = to_timm({n.removeprefix("backbone."): t for n, t in published_b1.items() if "backbone" in n}, "segformer")
    own = {n.replace("stages_", "stages.", 1): t for n, t in encoder.state_dict().items()}
    assert own.keys() == ours.keys() and all(torch.equal(own[n], t) for n, t in ours.items())
    assert not encoder.training
    with pytest.raises(UserError, match=r"has a DAFormer head; use icda\.interop\.load_published"):
        load_segformer(checkpoint)
    with pytest.raises(UserError, match=r"eps=hf is not known; give one of segformer, mmseg, huggingface"):
        load_encoder(checkpoint, eps="hf")
