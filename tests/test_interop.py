"""Reading the published checkpoint: every name has its place, and what does not fit is said."""

from __future__ import annotations

import json
import logging
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
from icda.weights.published import unused_shapes

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


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), pytest.param((3, 4, 6, 3), marks=pytest.mark.slow)])
def test_size_is_read_off_and_values_arrive(depths):
    state = recipe.state_dict(recipe.published_shapes(KEYS, depths))
    model = load_published({"state_dict": {**state, "epoch": torch.zeros(1)}})
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
        (lambda s: s.pop("head.conv_seg.bias"), r"of 364 entries 1 missing such as head\.conv_seg\.bias;"),
        (lambda s: s.update({"dat.stages.0.extra": torch.zeros(1)}), r"1 unknown such as dat\.stages\.0\.extra;"),
        (
            lambda s: s.update({"dat.down_projs.0.0.bias": torch.zeros(3)}),
            r"does not fit mit_b1: .*such as dat\.down_projs\.0\.0\.bias with \(3,\) instead of \(320,\)",
        ),
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


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mit_b1", "mit_b5"])
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
    with pytest.raises(
        UserError, match=r"its mean teacher .*does not fit mit_b1: .*2 missing such as m_head\.conv_seg"
    ):
        half = {n: t for n, t in under("m_", published_b1).items() if "conv_seg" not in n}
        load_published(published_b1 | half)


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
    with pytest.raises(UserError, match=r"encoder is no MiT, its entries are such as conv1\.weight, "):
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
        r"does not fit mit_b1: .*35 missing such as head\.fuse_layer\.aspp_modules\.0\.conv\.weight;",
    ),
    "half an encoder": (
        lambda s: {n: t for n, t in s.items() if not n.startswith("backbone.block4")},
        r"no MiT has width 64 and \(2, 2, 2, 0\) blocks; nearest is mit_b1 .*lacks 2 \(block4\.0, block4\.1\)",
    ),
    "a wider MiT": (
        lambda s: s | {"backbone.patch_embed1.proj.weight": torch.zeros(96, 3, 7, 7)},
        r"not a published ICDA checkpoint \(no MiT has width 96",
    ),
    "another width within": (
        lambda s: s | {"backbone.block1.0.attn.q.weight": torch.zeros(32, 32)},
        r"does not fit mit_b1: .*another size such as backbone\.block1\.0\.attn\.q\.weight with \(32, 32\)",
    ),
    "too much within": (
        lambda s: s | {"backbone.block1.0.attn.lora": torch.zeros(1)},
        r"does not fit mit_b1: .*1 unknown such as backbone\.block1\.0\.attn\.lora;",
    ),
    "not a number": (
        lambda s: s | {"head.conv_seg.bias": torch.full((19,), torch.nan)},
        r"not finite numbers \(NaN or infinite\): 1 \(head\.conv_seg\.bias\)",
    ),
    "quantised": (
        lambda s: s | {"head.conv_seg.bias": torch.zeros(19, dtype=torch.int8)},
        r"head\.conv_seg\.bias is torch\.int8, expected floating-point numbers",
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


def teacher_of(state: State) -> State:
    return under("m_", {n: t + 1 if t.is_floating_point() else t for n, t in state.items()})


ZERO = torch.zeros(1)
ODD: dict[str, tuple[Callable[[State], State], str]] = {
    "another teacher's head": (lambda s: {"m_evil_head.conv.weight": ZERO}, r"1 \(m_evil_head\.conv\.weight\)"),
    "an ema": (lambda s: {"ema_evil.x": ZERO}, r"1 \(ema_evil\.x\)"),
    "another alignment": (lambda s: {"alignment_evil.x": ZERO}, r"1 \(alignment_evil\.x\)"),
    "a loss": (lambda s: {"loss.x": ZERO}, r"1 \(loss\.x\)"),
    "a teacher's junk": (
        lambda s: teacher_of(s) | {"m_backbone.junk": ZERO},
        r"its mean teacher \(m_\* or ema_model\.\*\) does not fit mit_b1: .*1 unknown such as m_backbone\.junk;",
    ),
    "half a teacher": (
        lambda s: dict(list(teacher_of(s).items())[::2]),
        r"its mean teacher .*does not fit mit_b1: of 3\d\d entries 1\d\d missing such as m_backbone\.",
    ),
    "a teacher's size": (
        lambda s: teacher_of(s) | {"m_head.conv_seg.bias": ZERO},
        r"another size such as m_head\.conv_seg\.bias with \(1,\) instead of \(19,\)",
    ),
    "a frozen junk": (
        lambda s: {"imnet_backbone.zzz.weight": ZERO},
        r"its frozen ImageNet encoder .*176 missing such as imnet_backbone\.p.*1 unknown such as imnet_backbone\.zz",
    ),
    "a table of another size": (
        lambda s: {"dat.stages.0.attns.0.relative_position_index": ZERO},
        r"relative_position_index with \(1,\) instead of \(16, 16\)",
    ),
    "a strange name": (lambda s: {"evil\n\x1b[31mred" + "x" * 999: ZERO}, r"1 \(evil \[31mredxxx.*\.\.\.\)"),
    "twice": (
        lambda s: {"module.head.conv_seg.bias": s["head.conv_seg.bias"]},
        r"under two names, head\.conv_seg\.bias and module\.head\.conv_seg\.bias",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_what_stands_beside_the_student_is_checked_too(what, published_b1):
    change, message = ODD[what]
    with pytest.raises(UserError, match=message) as caught:
        read_published(published_b1 | change(published_b1), name="the file")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize("wrapper", ["module.", "model.module.", "module.model.", "_orig_mod.module."])
def test_wrappers_of_names(wrapper, published_b1):
    state = under(wrapper, published_b1)
    assert is_published(state)
    assert torch.equal(load_published(state).head.classifier.bias, published_b1["head.conv_seg.bias"])
    lost = f"{wrapper}head.conv_seg.bias"
    with pytest.raises(UserError, match=rf"1 missing such as {lost};"):
        load_published({n: t for n, t in state.items() if n != lost})


def test_names_of_daformer_in_messages(published_b1):
    state = daformer(published_b1)
    lost = "model.decode_head.fuse_layer.bottleneck.bn.bias"
    with pytest.raises(UserError, match=f"1 missing such as {lost};"):
        load_published({n: t for n, t in state.items() if n != lost})
    half = {n: t for n, t in daformer(published_b1, "ema_model.").items() if "decode_head" not in n}
    with pytest.raises(UserError, match=r"missing such as ema_model\.decode_head\.embed_layers\.0\.proj\.weight"):
        load_published(state | half)


def test_only_a_teacher_and_only_an_encoder(published_b1, tmp_path):
    message = r"holds a mean teacher alone \(m_backbone.* and no student \(backbone\.\*, head\.\*\)"
    for teacher in (False, True):
        with pytest.raises(UserError, match=message):
            load_published(teacher_of(published_b1), teacher=teacher)
    assert is_published(teacher_of(published_b1))
    bare = {n: t for n, t in published_b1.items() if n.startswith(("backbone.", "dat."))}
    with pytest.raises(UserError, match=r"holds an encoder alone .*use model\.encoder\.weights=PATH .*load_encoder$"):
        load_published(bare)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_is_published_looks_where_the_reader_looks(key, published_b1):
    content = {key: published_b1, "epoch": 3}
    assert is_published(content) and read_published(content).variant == "mit_b1"
    content[key] = published_b1 | {3: torch.zeros(1)}
    assert is_published(content)  # so that the reader can say what is wrong with it
    with pytest.raises(UserError, match="3"):
        read_published(content)


@pytest.mark.parametrize("source", [None, [1], b"x", 3])
def test_what_can_be_no_source(source):
    with pytest.raises(UserError, match=r"the state dict is \w+, expected the path of a checkpoint, or the dict"):
        load_published(source)


@pytest.mark.parametrize("count", [0, -1, "19", True, None, 19.0])
def test_what_can_be_no_number_of_classes(count, published_b1):
    with pytest.raises(UserError, match=r"num_classes=.* is no number of classes; give a whole number > 0"):
        load_published(published_b1, num_classes=count)


@pytest.mark.parametrize("shape", [(), (0, 256, 1, 1), (19,)])
def test_what_can_be_no_classifier(shape, published_b1):
    with pytest.raises(UserError, match=r"its head\.conv_seg\.weight is \(.*which no head has"):
        load_published(published_b1 | {"head.conv_seg.weight": torch.zeros(shape)})


def test_what_is_passed_over_is_logged_in_one_line(checkpoint, published_b1, caplog):
    with caplog.at_level(logging.INFO):
        found = read_published(checkpoint)
        load_published(checkpoint)
        load_published(checkpoint, teacher=True)
        load_encoder(checkpoint)
    read, student, teacher, encoder = (r.getMessage() for r in caplog.records)
    entries = len(published_b1) - 8
    beside = "tables of dat that nothing reads (16 entries), alignment_* (2 entries), valid_metrics (1 entry), "
    beside += "optimizer_states"
    assert read == f"{checkpoint}: passed over: {beside}"
    assert student == f"{checkpoint}: passed over: m_* ({entries} entries), imnet_* (176 entries), {beside}"
    assert teacher.startswith(f"{checkpoint}: passed over: backbone (176 entries), head (")
    heads = sum(n.startswith("head.") for n in published_b1)
    assert f"head ({heads} entries), dat ({len(published_b1) - 176 - heads} entries), m_* ({entries + 8} " in encoder
    assert found.teacher is not None and len(found.teacher) == entries + 2


def test_a_model_is_built_without_another_conversion(checkpoint, published_b1, monkeypatch):
    found = read_published(checkpoint)
    monkeypatch.setattr("icda.interop.to_timm", None)
    bias = published_b1["head.conv_seg.bias"]
    assert torch.equal(found.model().head.classifier.bias, bias)
    assert torch.equal(found.model(teacher=True).head.classifier.bias, bias + 1)
    assert not found.model().training
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"^a file holds no mean teacher"):
        read_published(published_b1, "a file").model(teacher=True)


def test_sizes_of_what_the_published_dar_never_reads():
    shapes = unused_shapes("mit_b5")
    assert {n: list(s) for n, s in shapes.items()} == {n: s for n, s in KEYS.items() if UNUSED.match(n)}


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
