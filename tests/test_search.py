"""Searches by Optuna: they find the maximum's side, and a stopped one goes on as if it had not been stopped."""

from __future__ import annotations

import math
import sys

import pytest
from conftest import CONF
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from icda.cli import run
from icda.config import validate

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper", reason="needs the extra sweep")

SEARCHES = sorted(path.stem for path in (CONF / "search").glob("*.yaml"))


class Kill(BaseException):
    """Stands for a process that is killed."""


class Trials:
    """In place of training: the mIoU is a function of the settings; notes folders and settings."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.seen: list[tuple[str, float, float]] = []
        self.stop_at = stop_at

    def __call__(self, cfg, folder):
        if len(self.seen) == self.stop_at:
            raise Kill
        self.seen.append((folder.name, cfg.schedule.lr, cfg.loss.pca_tau))
        if cfg.seed == 1:
            raise FileNotFoundError(2, "No such file or directory", "x")
        return {"last_miou": miou(*self.seen[-1][1:]), "best_miou": 0.9}


def miou(lr: float, pca_tau: float) -> float:
    return 0.5 - 0.1 * abs(math.log(lr / 2e-3)) - 1e-3 * pca_tau


@pytest.fixture
def search(monkeypatch, tmp_path):
    def search_with(main, *arguments: str) -> int:
        given = ["train.py", "+search=demo", f"hydra.sweep.dir={tmp_path}", *arguments]
        monkeypatch.setattr(sys, "argv", given)
        return run("train", main, CONF, objective="last_miou")

    return search_with


@pytest.mark.parametrize("name", SEARCHES)
def test_searches_compose_and_search_what_there_is(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"+search={name}"], return_hydra_config=True)
    sweeper = cfg.hydra.sweeper
    assert sweeper.direction == "maximize" and sweeper.sampler.seed == 0 and sweeper.n_trials >= 10
    for key, interval in sweeper.params.items():
        low, high = map(float, interval.removeprefix("tag(log, interval(").removesuffix("))").split(", "))
        assert 0 < low < OmegaConf.select(cfg, key) < high, key  # the default lies inside
    subdir = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)["subdir"]
    assert all("${" + key + "}" in subdir for key in sweeper.params)  # a folder for each trial, none for two
    config = validate(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))
    assert config.resume == "auto" and config.schedule.val_every == config.schedule.max_steps


@pytest.mark.slow
def test_the_search_maximises_the_last_miou(search, tmp_path):
    trials = Trials()
    assert search(trials, "hydra.sweeper.n_trials=15") == 0
    assert len({name for name, *_ in trials.seen}) == 15
    values = [miou(lr, pca_tau) for _, lr, pca_tau in trials.seen]
    assert OmegaConf.load(tmp_path / "optimization_results.yaml").best_value == max(values)
    assert sum(values[-5:]) > sum(values[:5])  # TPE's last trials lie nearer to the maximum than its random first


def test_a_stopped_search_asks_for_the_same_trials_again(search):
    sampler = "hydra.sweeper.sampler.n_startup_trials=2"  # TPE chooses those after them
    whole, stopped, again = Trials(), Trials(stop_at=3), Trials()
    search(whole, sampler, "hydra.sweeper.n_trials=4")
    with pytest.raises(Kill):
        search(stopped, sampler, "hydra.sweeper.n_trials=4")
    search(again, sampler, "hydra.sweeper.n_trials=5")
    assert stopped.seen == whole.seen[:3]
    assert again.seen[:4] == whole.seen and len(again.seen) == 5


def test_a_search_whose_trials_all_fail_says_why(search, capsys):
    assert search(Trials(), "seed=1", "hydra.sweeper.n_trials=2") == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and all("x cannot be used" in line for line in errors)
