from __future__ import annotations

import logging

import pytest
from omegaconf import OmegaConf

from icda.errors import UserError
from icda.training.same_run import CHANGEABLE, FREE, LATER, check_same_run, leaves


def before(cfg):
    return OmegaConf.to_container(cfg, resolve=False)


def test_every_named_setting_exists(compose_train):
    known = {key for key, _ in leaves(before(compose_train()))}
    assert known >= FREE | CHANGEABLE | LATER.keys()


@pytest.mark.parametrize(
    "change",
    ["workers=3", "device=cuda", "data_dir=elsewhere", "panels=0", "schedule.save_every=1", "resume=auto", "keep=5"],
)
def test_where_and_how_a_run_is_made_is_free(compose_train, caplog, change):
    check_same_run(before(compose_train()), compose_train(change), "resume=x", strict=True)
    assert not caplog.records


def test_data_may_have_moved(compose_train, caplog):
    check_same_run(before(compose_train()), compose_train("dataset.source.root=/b"), "resume=x", strict=True)
    assert not caplog.records


@pytest.mark.parametrize("change", ["seed=1", "loss.pca_tau=10", "model.encoder.name=mit_b1", "schedule.lr=1e-3"])
def test_another_run_is_refused_or_warned_of(compose_train, caplog, change):
    key = change.partition("=")[0]
    with pytest.raises(UserError, match=rf"resume=x was trained with {key}=.*, now it is .*hydra\.run\.dir"):
        check_same_run(before(compose_train()), compose_train(change), "resume=x", strict=True)
    with caplog.at_level(logging.WARNING):
        check_same_run(before(compose_train()), compose_train(change), "resume=x", strict=False)
    assert f"resume=x goes on with changed settings: {key} " in caplog.text


def test_longer_and_elsewhere_is_the_same_run_and_said(compose_train, caplog):
    cfg = compose_train("schedule.max_steps=9", "schedule.batch_size=1", "precision=bf16")
    check_same_run(before(compose_train()), cfg, "resume=x", strict=True)
    assert "precision fp32 -> bf16, schedule.batch_size 2 -> 1, schedule.max_steps 2 -> 9" in caplog.text


@pytest.mark.parametrize(
    "change", ["precision=bf16", "schedule.batch_size=1", "schedule.accumulate=2", "schedule.max_steps=9"]
)
def test_a_finished_run_is_no_other_ones_result(compose_train, change):
    with pytest.raises(UserError, match=rf"the run was trained with {change.partition('=')[0]}=.*sweep\.dir\)$"):
        check_same_run(before(compose_train()), compose_train(change), "the run", strict=True, finished=True)
    cfg = compose_train("workers=3", "device=cuda", "dataset.source.root=/b")
    check_same_run(before(compose_train()), cfg, "the run", strict=True, finished=True)


def test_what_a_run_started_from_is_part_of_it(compose_train):
    with pytest.raises(UserError, match=r"was trained with init=a\.pt, now it is b\.pt"):
        check_same_run(before(compose_train("init=a.pt")), compose_train("init=b.pt"), "resume=x", strict=True)


def test_the_file_of_the_encoders_weights_may_move(compose_train, caplog):
    old, cfg = (compose_train(f"model.encoder.weights={folder}/mit.pth") for folder in ("/a", "../b"))
    check_same_run(before(old), cfg, "resume=x", strict=True)
    assert caplog.messages == [
        "resume=x goes on with changed settings: model.encoder.weights /a/mit.pth -> ../b/mit.pth"
    ]
    with pytest.raises(UserError, match=r"model\.encoder\.weights=/a/mit\.pth, now it is \.\./b/mit\.pth"):
        check_same_run(before(old), cfg, "the run", strict=True, finished=True)
    for named in ("none", "imagenet"):
        with pytest.raises(UserError, match=rf"now it is {named};"):
            cfg = compose_train(f"model.encoder.weights={named}")
            check_same_run(before(old), cfg, "resume=x", strict=True)


def test_a_message_is_one_line(compose_train, caplog):
    old, cfg = before(compose_train()), compose_train()
    old["dataset"]["name"], cfg.dataset.name = "a\nb", "c\n d"
    with pytest.raises(UserError, match=r"dataset\.name=a b, now it is c d;"):
        check_same_run(old, cfg, "resume=x", strict=True)
    check_same_run(old, cfg, "resume=x", strict=False)
    assert caplog.messages == ["resume=x goes on with changed settings: dataset.name a b -> c d"]


def test_several_changes_are_counted(compose_train):
    with pytest.raises(UserError, match=r"loss\.mix=1\.0, now it is 0\.5 \(1 more\)"):
        cfg = compose_train("loss.mix=0.5", "seed=1")
        check_same_run(before(compose_train()), cfg, "resume=x", strict=True)


def test_settings_of_other_versions_are_passed_over(compose_train, caplog):
    old = before(compose_train())
    del old["seed"], old["loss"]["mix"]
    old["gone"] = {"away": 1}
    check_same_run(old, compose_train(), "resume=x", strict=True)
    assert not caplog.records


def test_settings_that_came_later_had_their_defaults_before(compose_train):
    known = dict(leaves(before(compose_train())))
    assert {key: known[key] for key in LATER} == LATER
    old = before(compose_train())
    for key in LATER:
        *groups, name = key.split(".")
        node = old
        for group in groups:
            node = node[group]
        del node[name]
    check_same_run(old, compose_train(), "the run", strict=True, finished=True)
    for change in ("loss.statistics=night", "model.dar.aligned=true"):
        with pytest.raises(UserError, match=rf"was trained with {change.partition('=')[0]}=(all|False), now it is"):
            check_same_run(old, compose_train(change), "the run", strict=True, finished=True)


def test_a_group_that_is_taken_from_elsewhere_is_another_one(compose_train):
    plain = before(compose_train())
    oracle = OmegaConf.create({**plain, "dataset": {**plain["dataset"], "source": "${dataset.val}"}})
    for one, other in ((compose_train(), oracle), (oracle, compose_train())):
        with pytest.raises(UserError, match=r"was trained with dataset\.source="):
            check_same_run(before(one), other, "the run", strict=True, finished=True)
    check_same_run(before(oracle), oracle, "the run", strict=True, finished=True)
