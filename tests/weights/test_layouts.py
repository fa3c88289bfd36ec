"""MiT layouts: names against the modules of other libraries, values bit for bit, outputs with the same weights."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from conftest import REFERENCE
from reference import recipe
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerModel

import icda.models  # noqa: F401  registers the encoders
from icda.weights.encoder import set_norm_eps
from icda.weights.layouts import (
    DEPTHS,
    LAYOUTS,
    NORM_EPS,
    eps_remark,
    examples,
    from_timm,
    layout_of,
    shapes_in,
    shapes_of,
    some,
    to_timm,
    variant_of,
    width_of,
)

WIDTHS = {name: tuple(factor * width_of(name) for factor in (1, 2, 5, 8)) for name in DEPTHS}
# From b1 on, sizes differ in depth alone.
SIZES = ["mit_b0", "mit_b2", pytest.param("mit_b5", marks=pytest.mark.slow)]
ODD = (70, 109)  # height and width: odd, not square, no multiple of a stride


@cache
def meta(variant: str) -> dict[str, Tensor]:
    """Names and shapes of our MiT, without values."""
    with torch.device("meta"):
        return timm.create_model(variant, num_classes=0).state_dict()


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def random_state(variant: str, seed: int = 0) -> dict[str, Tensor]:
    """Weights that no two entries or rows share, norms and biases included."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes_of(variant).items():
        value = torch.randn(shape, generator=generator)
        scale = 0.1 if len(shape) == 1 else torch.tensor(shape[1:]).prod().item() ** -0.5
        state[name] = value * scale + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
    return state


def transformers_mit(variant: str) -> SegformerModel:
    hidden = list(WIDTHS[variant])
    config = SegformerConfig(depths=list(DEPTHS[variant]), hidden_sizes=hidden, reshape_last_stage=True)
    return SegformerModel(config).eval()


class MMSegEmbed(nn.Module):
    def __init__(self, before: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(before, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.projection(x)
        return self.norm(x.flatten(2).transpose(1, 2)), x.shape[2:]


class MMSegAttention(nn.Module):
    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        if ratio > 1:
            self.sr = nn.Conv2d(width, width, ratio, ratio)
            self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        keys = x
        if hasattr(self, "sr"):
            keys = self.norm(self.sr(x.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2))
        return self.attn(x, keys, keys, need_weights=False)[0]


class MMSegFFN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 4 * width
        depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1), depthwise, nn.GELU(), nn.Dropout(0), nn.Conv2d(inner, width, 1), nn.Dropout(0)
        )


class MMSegBlock(nn.Module):
    def __init__(self, width: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = MMSegAttention(width, heads, ratio)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.ffn = MMSegFFN(width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.attn(self.norm1(x), size)
        return x + self.ffn.layers(self.norm2(x).transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)


class MMSegMiT(nn.Module):
    """The module tree of MMSegmentation's ``MixVisionTransformer`` (since 0.20), written from its structure."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        before = 3
        for s, (width, depth) in enumerate(zip(WIDTHS[variant], DEPTHS[variant], strict=True)):
            embed = MMSegEmbed(before, width, 3 if s else 7, 2 if s else 4)
            blocks = [MMSegBlock(width, (1, 2, 5, 8)[s], (8, 4, 2, 1)[s]) for _ in range(depth)]
            self.layers.append(nn.ModuleList([embed, nn.ModuleList(blocks), nn.LayerNorm(width, eps=1e-6)]))
            before = width

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for embed, blocks, norm in self.layers:
            x, size = embed(x)
            for block in blocks:
                x = block(x, size)
            x = norm(x).transpose(1, 2).unflatten(2, size)
            maps.append(x)
        return maps


@pytest.mark.parametrize("variant", DEPTHS)
def test_names_and_shapes_are_those_of_other_libraries(variant):
    ours = meta(variant)
    assert shapes_of(variant) == shapes(ours)
    assert variant_of(ours) == variant
    with torch.device("meta"):
        theirs = {"mmseg": MMSegMiT(variant), "huggingface5": transformers_mit(variant)}
    for layout, module in theirs.items():
        converted = from_timm(ours, layout)
        assert shapes(converted) == shapes(module.state_dict())
        assert layout_of(converted) == layout
        assert shapes(to_timm(converted, layout)) == shapes(ours)


@pytest.mark.parametrize(
    "variant", ["mit_b1", "mit_b2", "mit_b3", "mit_b5"]
)  # no stage of theirs is deeper than b5's
def test_names_are_those_of_the_published_checkpoint(variant):
    keys = json.loads((REFERENCE / "checkpoint_keys_mit_b5.json").read_text())
    keys = recipe.published_shapes(keys, DEPTHS[variant])
    published = {n.removeprefix("backbone."): tuple(s) for n, s in keys.items() if n.startswith("backbone.")}
    converted = from_timm(meta(variant), "segformer")
    assert shapes(converted) == published
    assert layout_of(converted) == "segformer"


def test_names_of_hugging_face_files(tmp_path):
    transformers_mit("mit_b0").save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert shapes(from_timm(meta("mit_b0"), "huggingface")) == names


@pytest.mark.parametrize(("variant", "counts"), [("mit_b0", (176, 160, 192)), ("mit_b5", (1052, 948, 1156))])
def test_numbers_of_tensors(variant, counts):
    found = tuple(len(from_timm(meta(variant), layout)) for layout in ("segformer", "mmseg", "huggingface"))
    assert found == counts  # of the authors' files: joined queries, keys and values, or each alone


@pytest.mark.parametrize(("variant", "dtype"), [*((n, torch.float32) for n in DEPTHS), ("mit_b0", torch.float16)])
def test_round_trips_are_exact(variant, dtype):
    state = {name: value.to(dtype) for name, value in random_state(variant).items()}
    for source in LAYOUTS:
        there = from_timm(state, source)
        back = to_timm(there, source)
        assert back.keys() == state.keys()
        assert all(torch.equal(back[n], t) and back[n].dtype == dtype for n, t in state.items()), source


def test_rows_go_where_the_other_libraries_have_them():
    state = random_state("mit_b0")
    name = "stages.2.blocks.1.attn."
    q, kv = state[name + "q.weight"], state[name + "kv.weight"]
    width = WIDTHS["mit_b0"][2]
    mmseg = from_timm(state, "mmseg")["layers.2.1.1.attn.attn.in_proj_weight"]
    assert torch.equal(mmseg[:width], q) and torch.equal(mmseg[width:], kv)
    hub = from_timm(state, "huggingface")
    assert torch.equal(hub["encoder.block.2.1.attention.self.key.weight"], kv[:width])
    assert torch.equal(hub["encoder.block.2.1.attention.self.value.weight"], kv[width:])
    pointers = [t.untyped_storage().data_ptr() for t in hub.values()]
    assert len(set(pointers)) == len(pointers)  # safetensors refuses tensors that share memory


def our_maps(variant: str, state: dict[str, Tensor], layout: str, x: Tensor) -> list[Tensor]:
    encoder = timm.create_model(variant, features_only=True).eval()
    encoder.load_state_dict({n.replace("stages.", "stages_", 1): t for n, t in state.items()})
    set_norm_eps(encoder, layout)
    return encoder(x)


@pytest.mark.parametrize("variant", SIZES)
@torch.no_grad()
def test_outputs_with_the_same_weights(variant, tmp_path):
    state, x = random_state(variant), torch.randn(2, 3, *ODD, generator=torch.Generator().manual_seed(1))
    theirs = smp.encoders.get_encoder(variant, weights=None).eval()
    missing, unexpected = theirs.load_state_dict(from_timm(state, "segformer"))
    assert not missing and not unexpected
    check(our_maps(variant, state, "segformer", x), theirs(x)[2:])
    hub = transformers_mit(variant)
    hub.load_state_dict(from_timm(state, "huggingface5"))
    check(our_maps(variant, state, "huggingface", x), hub(x, output_hidden_states=True).hidden_states)
    tree = MMSegMiT(variant).eval()
    tree.load_state_dict(from_timm(state, "mmseg"))
    check(our_maps(variant, state, "mmseg", x), tree(x))


def check(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= 4e-6 * max(1.0, other.abs().max().item())


@torch.no_grad()
def test_loaded_by_transformers_from_a_file(tmp_path):
    state, x = random_state("mit_b0"), torch.randn(1, 3, *ODD)
    transformers_mit("mit_b0").config.save_pretrained(tmp_path)
    save_file(from_timm(state, "huggingface"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, loading = SegformerModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert theirs.config.reshape_last_stage
    maps = theirs.eval()(x, output_hidden_states=True).hidden_states
    check(our_maps("mit_b0", state, "huggingface", x), maps)


def eps_by_kind(module: nn.Module, embed: tuple[str, ...], reduction: tuple[str, ...]) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {"block": set(), "patch_embed": set(), "reduction": set()}
    for name, part in module.named_modules():
        if isinstance(part, nn.LayerNorm):
            inner = "reduction" if name.endswith(reduction) else "block"
            found["patch_embed" if any(e in name for e in embed) else inner].add(part.eps)
    return found


def test_eps_are_those_of_the_libraries():
    with torch.device("meta"):
        hub, ours = transformers_mit("mit_b0"), timm.create_model("mit_b0", features_only=True)
    authors = smp.encoders.get_encoder("mit_b0", weights=None)
    found = {
        "segformer": eps_by_kind(authors, ("patch_embed",), ("attn.norm",)),
        "huggingface": eps_by_kind(hub, ("patch_embeddings",), ("sequence_reduction.layer_norm",)),
        "timm": eps_by_kind(ours, ("patch_embed", "downsample"), ("attn.norm",)),
    }
    for layout, kinds in found.items():
        assert kinds == {kind: {getattr(NORM_EPS[layout], kind)} for kind in kinds}, layout
        set_norm_eps(ours, layout)
        assert eps_by_kind(ours, ("patch_embed", "downsample"), ("attn.norm",)) == kinds
    assert NORM_EPS["mmseg"].block == NORM_EPS["mmseg"].patch_embed == NORM_EPS["mmseg"].reduction == 1e-6


@torch.no_grad()
def test_the_remark_on_eps_says_how_much_it_makes():
    state, x = random_state("mit_b0"), torch.randn(1, 3, *ODD)
    ours = our_maps("mit_b0", state, "segformer", x)
    for layout, words in (("mmseg", "patch embeddings and spatial red"), ("huggingface5", "blocks and stages")):
        other = our_maps("mit_b0", state, layout, x)
        assert 1e-6 < max((a - b).abs().max().item() for a, b in zip(ours, other, strict=True)) < 1e-4
        assert words in eps_remark(layout) and "some 1e-5" in eps_remark(layout)
        assert "\n" not in eps_remark(layout)
    assert "agree" in eps_remark("segformer")


def test_what_is_no_whole_mit_is_said():
    whole = meta("mit_b3")

    def without(*beginnings: str) -> dict[str, Tensor]:
        return {n: t for n, t in whole.items() if not n.startswith(beginnings)}

    for state, message in (
        (without("stages.2.blocks.17."), r"nearest is mit_b3.*it lacks 1 \(stages\.2\.blocks\.17\)"),
        (without("stages.3.blocks."), r"nearest is mit_b3.*it lacks 3 \(stages\.3\.blocks\.0, "),
        (
            {**whole, "stages.0.blocks.3.norm1.weight": torch.zeros(64)},
            r"nearest is mit_b3.*it has beyond it 1 \(stages\.0\.blocks\.3\)",
        ),
        ({**whole, "patch_embed.proj.weight": torch.zeros(96, 3, 7, 7)}, "no MiT has width 96; mit_b0 has 32"),
        (without("patch_embed."), "no weights of a first patch embedding"),
    ):
        with pytest.raises(ValueError, match=message):
            variant_of(state)


def test_other_names_and_lone_halves_are_left_as_they_are():
    assert layout_of({"conv1.weight": torch.zeros(1), "layer1.0.conv1.weight": torch.zeros(1)}) is None
    hub = from_timm(random_state("mit_b0"), "huggingface")
    hub.pop("encoder.block.0.0.attention.self.value.weight")
    hub["classifier.weight"] = torch.ones(2, 2)
    ours = to_timm(hub, "huggingface")
    assert torch.equal(ours["classifier.weight"], torch.ones(2, 2))
    assert "stages.0.blocks.0.attn.kv.weight" not in ours
    assert "encoder.block.0.0.attention.self.key.weight" in ours
    assert F.mse_loss(ours["patch_embed.proj.weight"], hub["encoder.patch_embeddings.0.proj.weight"]) == 0


@pytest.mark.parametrize(("layout", "block"), [("timm", "stages.2.blocks.1"), ("huggingface", "encoder.block.2.1")])
def test_a_missing_block_is_named_as_in_the_layout(layout, block):
    state = {n: t for n, t in meta("mit_b0").items() if not n.startswith("stages.2.blocks.1.")}
    with pytest.raises(ValueError, match=rf"it lacks 1 \({re.escape(block)}\)$"):
        variant_of(state, layout)


@pytest.mark.parametrize("layout", ["segformer", "mmseg", "huggingface", "huggingface5"])
def test_shapes_in_a_layout_are_those_of_its_tensors(layout):
    there = from_timm(meta("mit_b1"), layout)
    assert shapes_in(shapes_of("mit_b1"), layout) == {n: tuple(t.shape) for n, t in there.items()}


def test_names_of_strangers_in_messages():
    names = ["a\nb\x1b[2J", "x" * 1000, "c", "d"]
    assert some(names).isprintable() and len(some(names)) < 120 and some(names).startswith("4 (a b [2J, xxx")
    assert some([]) == "0" and examples([]) == "none" and examples(iter("abcd")) == "a, b, c"
