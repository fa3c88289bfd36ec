"""The configuration: every key is documented, typed and read, and mistakes are named in one line."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from icda.config import TrainConfig, is_size, validate
from icda.errors import UserError
from icda.prediction.inputs import PARTS

PACKAGE = Path(__file__).parents[1] / "icda"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())


def leaves(node, prefix=""):
    if not isinstance(node, dict) or not node:
        return [prefix]
    return [leaf for k, v in node.items() for leaf in leaves(v, f"{prefix}.{k}" if prefix else k)]


def settings(kind=TrainConfig):
    for name, hint in get_type_hints(kind).items():
        if is_dataclass(hint):
            yield from settings(hint)
        else:
            yield name


@pytest.mark.parametrize("group", GROUPS)
def test_every_key_is_documented_where_it_stands(group):
    """In one of the group's files, every key has a comment on its line; keys of nested groups on their own lines."""
    documented, used = set(), set()
    for file in (CONF / group).glob("*.yaml"):
        content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        content.pop("defaults", None)
        used |= {leaf.rpartition(".")[2] for leaf in leaves(content) if leaf}
        for line in file.read_text().splitlines():
            if match := re.match(r"\s*(?:[a-z_]+\.)*([a-z_]+):.* # \S+", line):
                documented.add(match[1])
    # What a data set's own adapter takes is documented in its class; the names of files' parts speak for themselves.
    own = {"_target_", "root", "split", "splits", "sequences", "exclude_sequences", "labelled", "name"}
    assert sorted(used - documented - own) == []


@pytest.mark.parametrize("name", sorted(p.stem for p in CONF.glob("*.yaml")))
def test_top_level_keys_are_documented(name):
    text = (CONF / f"{name}.yaml").read_text().split("hydra:")[0]
    keys = re.findall(r"^([a-z_]+):(.*)$", text, re.M)
    assert [key for key, rest in keys if key != "defaults" and "#" not in rest] == []


@pytest.mark.parametrize("key", sorted(set(settings())))
def test_every_key_is_read(key):
    sources = [p.read_text() for p in PACKAGE.rglob("*.py") if p.name != "config.py"]
    config = (PACKAGE / "config.py").read_text()
    own = config[config.index("class LossConfig") :].count(f"self.{key}")
    # DARConfig and HeadConfig are handed over whole, as constructor arguments of the same names.
    handed_over = sum(len(re.findall(rf"^        {key}: ", s, re.M)) for s in sources)
    by_name = key in PARTS or any(f'.get("{key}")' in s for s in sources)
    assert own or handed_over or by_name or any(f".{key}" in s for s in sources)


def test_eval_keys_are_read():
    source = (PACKAGE / "scoring.py").read_text().replace("config.", "cfg.")
    keys = [k for k in OmegaConf.load(CONF / "eval.yaml") if k not in ("defaults", "hydra", "dataset")]
    assert [k for k in keys if f"cfg.{k}" not in source] == []


def test_constructor_arguments_have_the_names_of_their_groups():
    from inspect import signature

    from icda.config import DARConfig, HeadConfig
    from icda.models import DAR, DAFormerHead

    for kind, config in ((DAR, DARConfig), (DAFormerHead, HeadConfig)):
        assert {f.name for f in fields(config)} <= set(signature(kind).parameters)


def composed(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.mark.parametrize("dataset", ["demo", "darkzurich", "camvid_dusk", "acdc", "acdc_night", "nightcity"])
@pytest.mark.parametrize("loss", ["source_only", "dacs", "icda"])
def test_groups_compose(dataset, loss):
    config = validate(composed(f"dataset={dataset}", f"loss={loss}", "model=icda_daformer"))
    assert config.dataset.name == dataset
    assert config.loss.needs_dar == (loss == "icda") == config.loss.needs_enhanced
    assert config.loss.needs_teacher == (loss != "source_only")


def test_the_headline_is_the_published_setting():
    config = validate(composed("dataset=darkzurich", "model=icda_daformer"))
    schedule, loss, sampling = config.schedule, config.loss, config.dataset.sampling
    assert (schedule.max_steps, schedule.warmup_steps, schedule.batch_size) == (40000, 1500, 2)
    assert (schedule.lr, schedule.encoder_lr_factor, schedule.dar_lr_factor) == (6e-4, 0.1, 0.1)
    assert (schedule.weight_decay, schedule.teacher_momentum, schedule.val_every) == (0.01, 0.999, 2000)
    assert (loss.feature_distance, loss.pca_tau, loss.pca_momentum) == (0.005, 50, 0.9)
    assert (loss.pseudo_label_threshold, loss.reference_probability) == (0.968, 0.5)
    assert (sampling.crop, sampling.min_pixels, sampling.min_crop_pixels) == ([512, 512], 3000, 1500)
    assert (sampling.max_class_share, sampling.temperature, sampling.tries) == (0.75, 0.01, 10)
    assert config.dataset.pseudo_label_border == [15, 15]
    assert (config.model.encoder.name, config.model.head.dilations) == ("mit_b5", [1, 6, 12, 18])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.max_steps=abc", r"^schedule\.max_steps=abc has the wrong type; expected int$"),
        ("schedule.max_steps=2.5", r"expected int"),
        ("schedule.lr=true", r"expected float"),
        ("dataset.sampling.crop=128", r"crop=128 has the wrong type; expected a list"),
        ("dataset.sampling.crop=[128]", r"expected \[height, width\]"),
        ("score_last=report", r"^score_last=report has the wrong type; expected a list"),
        ("score_last=null", r"^score_last=None has the wrong type; expected a list"),
        ("seed=-1", r"^seed=-1 is out of range; expected from 0 to 2"),
        ("seed=9223372036854775808", r"out of range"),
        ("panels=-1", r"expected 0 or more"),
        ("dataset.sampling.tries=0", r"expected 1 or more"),
        ("dataset.sampling.max_class_share=-1", r"expected from 0 to 1"),
        ("loss.mix_jitter_strength=0.6", r"expected from 0 to 0.5"),
        ("loss.mix=-1", r"expected 0 or more"),
        ("schedule.weight_decay=-1", r"expected 0 or more"),
        ("model.head.dropout=1", r"expected from 0 to below 1"),
        ("model.encoder.drop_path_rate=3", r"expected from 0 to below 1"),
        ("model.head.dilations=[]", r"expected numbers of 1 or more"),
        ("model.dar.heads=[4]", r"expected two numbers"),
        ("model.dar.offset_kernels=[8,7]", r"expected two odd numbers"),
        ("model.dar.window=0", r"expected 1 or more"),
        ("dataset.val=null", r"expected a data set with _target_"),
        ("dataset.source=foo", r"expected a data set with _target_"),
        ("cem.illumination=dark", r"expected one of translated, style, relight, none"),
        ("cem.style_strength=[0.9,0.2]", r"style_strength=\[0.9, 0.2\] is out of range; expected \[least, most\]"),
        ("cem.warps=[bend]", r"expected some of homography, tps, affine_tps"),
        ("loss.pca_tau=0", r"^loss\.pca_tau=0\.0 is out of range; expected above 0$"),
        ("loss.masked=-1", r"^loss\.masked=-1\.0 is out of range; expected 0 or more$"),
        ("loss.mask_block=0", r"^loss\.mask_block=0 is out of range; expected 1 or more$"),
        ("loss.mask_share=1.5", r"^loss\.mask_share=1\.5 is out of range; expected from 0 to 1$"),
        ("loss.coupling_trains=both", r"^loss\.coupling_trains=both is out of range; expected dar or all$"),
        ("loss.pca_labels=pseudo", r"^loss\.pca_labels=pseudo is out of range; expected own or given$"),
        ("loss.pca_balanced=2", r"^loss\.pca_balanced=2 has the wrong type; expected bool$"),
        ("loss.pseudo_label_weight=one", r"^loss\.pseudo_label_weight=one .* batch, image, pixel or probability$"),
        ("model.dar.aligned=2", r"^model\.dar\.aligned=2 has the wrong type; expected bool$"),
        ("model.dar.position_table=4x4", r"^model\.dar\.position_table=4x4 has the wrong type; expected bool$"),
        ("+extra=1", r"^extra is not a setting; the configuration has dataset, model"),
        ("+loss.extra=1", r"^loss\.extra is not a setting; loss has source, feature_distance"),
        ("model.head=3", r"^model\.head=3 is not a group of settings; expected channels"),
        ("~loss.mix", r"^loss\.mix is missing"),
    ],
)
def test_mistakes(override, message):
    with pytest.raises(UserError, match=message):
        validate(composed(override))


@pytest.mark.parametrize("labels", ["given", "own"])
def test_words_that_yaml_takes_for_none_are_words_where_words_are_expected(labels):
    assert validate(composed(f"loss.pca_labels={labels}")).loss.pca_labels == labels


def test_settings_that_older_checkpoints_lack_are_as_published():
    dar = validate(composed("~model.dar.aligned", "~model.dar.position_table")).model.dar
    assert (dar.aligned, dar.position_table) == (False, False)


def test_what_the_masked_image_needs():
    loss = validate(composed("loss=source_only", "loss.masked=1")).loss
    assert loss.needs_teacher and loss.needs_target and not loss.needs_enhanced
    assert loss.needs_dar == loss.needs_reference == loss.pseudo_label_with_dar


def test_integers_will_do_for_floats_and_null_for_what_may_be_absent():
    config = validate(composed("schedule.lr=1", "resume=null", "model.encoder.drop_path_rate=null"))
    assert config.schedule.lr == 1.0 and isinstance(config.schedule.lr, float)
    assert config.resume is None and config.model.encoder.drop_path_rate is None


@pytest.mark.parametrize("value", ["auto", "original", [1, 2], [540, 960]])
def test_sizes(value):
    assert is_size(OmegaConf.create({"size": value}).size)


@pytest.mark.parametrize(
    "value",
    [
        "small",
        "",
        64,
        None,
        True,
        [],
        [64],
        [64, 64, 64],
        [0, 64],
        [-1, 64],
        [64, 1.5],
        [64, True],
        [64, None],
        ["64", 64],
        {"height": 64},
    ],
)
def test_what_is_no_size(value):
    assert not is_size(OmegaConf.create({"size": value}).size)
