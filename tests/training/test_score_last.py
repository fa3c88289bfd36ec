"""Held-out sets: scored once, after the last step, as scripts/eval.py does, whatever stops the run before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import CONF, TINY
from hydra import compose, initialize_config_dir
from test_torchrun import torchrun
from training_runs import finish, settings

from icda.errors import UserError
from icda.scoring import score
from icda.training import validation
from icda.training.loop import Run, train
from icda.training.signals import Stopped

HELD_OUT = (
    "++dataset.score_also.report._target_=icda.data.Cityscapes",
    "++dataset.score_also.report.root=${data_dir}/demo/Cityscapes",
    "++dataset.score_also.report.split=val",
    "++dataset.score_also.report.size=[64,128]",
    "++dataset.score_also.nights=${dataset.val}",
    "loss=source_only",
    "panels=0",
)
BOTH = "score_last=[report,nights]"


@pytest.fixture
def composed(compose_train):
    return lambda *overrides: compose_train(*HELD_OUT, *overrides)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def scored(demo_data, tmp_path_factory) -> Path:
    """A finished run that scored two held-out sets."""
    folder = tmp_path_factory.mktemp("scored")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", [*TINY, f"data_dir={demo_data}", *HELD_OUT, BOTH]), folder)
    return folder


def test_the_scores_are_those_of_the_scoring_script(scored, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [
            f"ckpt={scored}/checkpoints/last.pt",
            "workers=0",
            "progress=false",
            "device=cpu",
            "report=false",
        ]
        sets = score(compose("eval", overrides), tmp_path)["sets"]
    assert summary_of(scored)["score_last"] == {
        name: {"miou": sets[name]["miou"], "iou": sets[name]["iou"]} for name in ("report", "nights")
    }
    # One of them is the set of the last validation, in the very same way.
    assert summary_of(scored)["score_last"]["nights"]["miou"] == summary_of(scored)["last_miou"]
    assert sets["report"]["miou"] != sets["val"]["miou"]


def test_they_are_in_the_metrics_and_in_no_choice(scored, composed, tmp_path):
    assert [sorted(line) for line in lines(scored)][1:] == [["score_last", "seconds", "step"]]
    assert lines(scored)[1]["score_last"] == summary_of(scored)["score_last"]
    train(composed(), tmp_path)
    assert summary_of(tmp_path)["score_last"] == {}
    without, with_them = lines(tmp_path)[0], lines(scored)[0]
    assert {**without, "seconds": 0} == {**with_them, "seconds": 0}
    best = [(folder / "checkpoints" / "best.pt").exists() for folder in (tmp_path, scored)]
    assert best == [True, True] and summary_of(tmp_path)["best_miou"] == summary_of(scored)["best_miou"]


def counted(monkeypatch, fails_at: int | None = None, error: BaseException | None = None) -> list[str]:
    """Names of the sets that are scored from now on; the call of a number raises."""
    real, seen = validation.evaluate, []

    def evaluate(model, dataset, *arguments, **options):
        seen.append(dataset.name)
        if len(seen) == fails_at:
            raise error
        return real(model, dataset, *arguments, **options)

    monkeypatch.setattr(validation, "evaluate", evaluate)
    return seen


def test_a_finished_run_is_not_scored_again(composed, tmp_path, monkeypatch):
    seen = counted(monkeypatch)
    first = train(composed(BOTH, "resume=auto"), tmp_path)
    again = train(composed(BOTH, "resume=auto"), tmp_path)
    assert seen == ["Dark Zurich val", "Cityscapes val", "Dark Zurich val"] and again == first


def test_a_run_that_was_killed_while_it_scored_scores_all_again(scored, composed, tmp_path, monkeypatch):
    class Kill(BaseException):
        """Stands for a process that is killed."""

    counted(monkeypatch, 3, Kill())
    with pytest.raises(Kill):
        train(composed(BOTH, "resume=auto"), tmp_path)
    assert len(lines(tmp_path)) == 1 and not (tmp_path / "summary.json").exists()
    monkeypatch.undo()
    seen = counted(monkeypatch)
    train(composed(BOTH, "resume=auto"), tmp_path)
    assert seen == ["Cityscapes val", "Dark Zurich val"]  # the validation was over
    assert summary_of(tmp_path)["score_last"] == summary_of(scored)["score_last"]
    assert [sorted(line) for line in lines(tmp_path)] == [sorted(line) for line in lines(scored)]


def test_a_signal_while_it_scores_stops_the_run_to_go_on(scored, composed, tmp_path, monkeypatch):
    run = Run(composed(BOTH), tmp_path)
    real, seen = validation.evaluate, []

    def signalled(*arguments, **options):
        seen.append(1)
        if len(seen) == 2:
            run.stop.signal_name = "SIGTERM"
        return real(*arguments, **options)

    monkeypatch.setattr(validation, "evaluate", signalled)
    with pytest.raises(Stopped) as stopped:
        run.train()
    assert (stopped.value.step, stopped.value.code) == (2, 75) and not (tmp_path / "summary.json").exists()
    monkeypatch.undo()
    assert train(composed(BOTH, "resume=auto"), tmp_path)["score_last"] == summary_of(scored)["score_last"]


def test_a_longer_run_is_scored_at_its_own_end(composed, tmp_path):
    train(composed("score_last=[report]"), tmp_path)
    train(composed("score_last=[report]", "resume=auto", "schedule.max_steps=3"), tmp_path)
    assert [(line["step"], "score_last" in line) for line in lines(tmp_path)] == [(2, False), (3, False), (3, True)]


def test_names_and_classes_are_checked_before_the_first_step(composed, compose_train, tmp_path):
    with pytest.raises(UserError, match=r"^score_last: .* of demo has no set repor; there are report, nights; give"):
        Run(composed("score_last=[report,repor]"), tmp_path)
    with pytest.raises(UserError, match=r"has no set report; it names no set; give"):
        Run(compose_train("score_last=[report]"), tmp_path)
    missing = "++dataset.score_also.report.root=/nowhere"
    with pytest.raises(UserError, match=r"no folder /nowhere"):
        Run(composed("score_last=[report]", missing), tmp_path)
    assert Run(composed("score_last=[nights]", missing), tmp_path).datasets.last.keys() == {"nights"}


def test_frames_of_a_held_out_set_that_are_trained_on_are_told(composed, tmp_path):
    trained = ("++dataset.score_also.nights=${dataset.target}", "loss=dacs", "overlap=error", "score_last=[nights]")
    with pytest.raises(UserError, match=r"frames that Dark Zurich train trains on are also scored in nights"):
        Run(composed(*trained), tmp_path)
    assert Run(composed(*trained[:-1]), tmp_path).datasets.last == {}


@pytest.mark.slow
def test_several_processes_score_as_one(scored, demo_data, tmp_path):
    """The same weights, scored by two processes that each take half of the images."""
    last = f"resume={scored}/checkpoints/last.pt"
    finish(torchrun(tmp_path, settings(demo_data, tmp_path / "run", *HELD_OUT, BOTH, last)))
    assert summary_of(tmp_path / "run")["score_last"] == summary_of(scored)["score_last"]
    assert [line["step"] for line in lines(tmp_path / "run")] == [2, 2]
