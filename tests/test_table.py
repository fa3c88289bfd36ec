"""The table of finished runs, with figures computed by hand."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from icda.errors import UserError
from icda.finished_runs import _NOT_A_SETTING, collect, read_run
from icda.table import markdown, table, write_csv
from icda.training.same_run import FREE

SCRIPT = Path(__file__).parents[1] / "scripts" / "table.py"

# What the files of a group say, of which a table sees the composed values alone.
LOSSES = {"icda": {"mix": 1.0, "enhanced": 1.0}, "dacs": {"mix": 1.0, "enhanced": 0.0}}


def run(
    folder: Path,
    loss: str = "icda",
    seed: int = 0,
    miou: float | None = 0.1,
    *extra: str,
    iou: dict | None = None,
    val: str = "val",
    ended: str | None = None,
    world_size: int | None = None,
    held_out: dict | None = None,
    named: dict | None = None,
    **settings,
) -> Path:
    """A run's folder; ``extra`` are its overrides, ``settings`` what they or conf/ say (``schedule_lr=...``)."""
    (folder / "config").mkdir(parents=True)
    choices = {"dataset": "demo", "model": "icda_small", "loss": loss, "cem": "style", "schedule": "demo"}
    (folder / "config" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}}))
    overrides = [f"loss={loss}", f"seed={seed}", "workers=0", *extra]
    (folder / "config" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    config = {
        "dataset": {"name": "demo", "source": {"root": "/somewhere"}},
        "loss": dict(LOSSES[loss]),
        "schedule": {"max_steps": 800, "lr": 0.002, "log_every": 10},
        "precision": "fp32",
        "memory": "normal",
        "seed": seed,
        "data_dir": "data",
        "workers": 0,
    }
    for name, value in settings.items():
        group, _, key = name.partition("_")
        if name in config:
            config[name] = value
        else:
            config[group][key] = value
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text('{"step": 200}\n{"step": 400}\n{"st')
    if ended or world_size:
        (folder / "record.json").write_text(
            json.dumps([{"ended": ended, "world_size": world_size or 1, "step": 800}])
        )
    if miou is not None:
        steps = config["schedule"]["max_steps"]
        summary = {"last_miou": miou, "best_miou": miou + 0.01, "seconds": 90.0, "steps": steps, "val": val}
        if held_out is not None:
            summary["score_last"] = held_out
        if named is not None:
            summary |= {"config": config, "choices": {**choices, **named}}
        (folder / "summary.json").write_text(json.dumps({**summary, "iou": iou or {}}))
    return folder


def rows(text: str) -> list[str]:
    """The table's lines below its head."""
    return text.partition("| --- |\n")[2].splitlines()


def test_mean_and_spread_over_seeds(tmp_path, caplog):
    for seed, miou in enumerate((0.10, 0.12, 0.17)):
        run(tmp_path / f"a{seed}", "icda", seed, miou)
    run(tmp_path / "b", "dacs", 0, 0.05)
    run(tmp_path / "c", "dacs", 0, 0.07, "schedule.lr=1e-3", schedule_lr=1e-3)
    run(tmp_path / "d", "dacs", 1, None)
    assert table([tmp_path]).splitlines() == [
        "All runs: dataset=demo model=icda_small cem=style",
        "",
        "| setting | n | mIoU | best | minutes |",
        "| --- | --- | --- | --- | --- |",
        "| loss=dacs schedule.lr=0.002 | 1 | 5.0 | 6.0 | 1.5 |",
        "| loss=dacs schedule.lr=0.001 | 1 | 7.0 | 8.0 | 1.5 |",
        "| loss=icda schedule.lr=0.002 | 3 | 13.0 ± 3.6 | 14.0 | 1.5 |",  # deviations -3, -1, 4: sqrt(26 / 2)
    ]
    assert "1 unfinished run is left out:" in caplog.text
    assert f"{tmp_path / 'd'}: step 400 of 800" in caplog.text


def test_one_setting_is_told_in_its_row(tmp_path):
    run(tmp_path / "a", "icda", 0, 0.10)
    run(tmp_path / "b", "icda", 1, 0.20)
    text = table([tmp_path])
    assert rows(text) == ["| dataset=demo model=icda_small loss=icda cem=style | 2 | 15.0 ± 7.1 | 16.0 | 1.5 |"]
    assert text.startswith("All runs: dataset=demo model=icda_small loss=icda cem=style\n\n|")


def test_what_one_setting_was_given_stands_above_it(tmp_path):
    run(tmp_path / "a", "icda", 0, 0.10, "schedule.lr=1e-3", "loss.mix=0.5", schedule_lr=1e-3, loss_mix=0.5)
    first, _, *_, row = table([tmp_path]).splitlines()
    assert first == "All runs: dataset=demo model=icda_small loss=icda cem=style loss.mix=0.5 schedule.lr=0.001"
    assert row.startswith("| dataset=demo model=icda_small loss=icda cem=style | 1 |")


def test_what_changes_no_result_is_what_a_run_may_change_freely():
    # Over seeds is averaged; the best is the best of all validations; what is scored at the end changes no run.
    assert set(_NOT_A_SETTING ^ FREE) == {"seed", "schedule.val_every", "score_last"}


@pytest.mark.parametrize(
    ("override", "settings"),
    [
        ("data_dir='/a b/c'", {"data_dir": "/x"}),
        ("memory=low", {"memory": "low"}),
        ("schedule.log_every=1", {"schedule_log_every": 1}),
        ("+schedule.lr=2e-3", {}),  # what it was anyway
        ("dataset.source.root=/y", {"dataset_source": {"root": "/y"}}),  # the data moved
    ],
)
def test_what_does_not_change_a_result_is_no_setting(tmp_path, override, settings):
    run(tmp_path / "a", "icda", 0, 0.10)
    run(tmp_path / "b", "icda", 1, 0.20, override, **settings)
    assert len(rows(table([tmp_path]))) == 1


@pytest.mark.parametrize(
    ("extra", "changes", "told"),
    [
        (["precision=bf16"], {"precision": "bf16"}, ["precision=fp32", "precision=bf16"]),
        (["++schedule.max_steps=400"], {"schedule_max_steps": 400}, ["max_steps=800", "max_steps=400"]),
        (["~loss.mix"], {"loss_mix": 0.0}, ["loss.mix=1.0", "loss.mix=0.0"]),
        (["+experiment=long"], {"schedule_lr": 1.0}, ["schedule.lr=0.002", "schedule.lr=1.0"]),  # within a file
        (["dataset.name='\"a|b\"'"], {"dataset_name": "a|b"}, ["dataset.name=demo", "dataset.name=a\\|b"]),
        ([], {"val": "other val"}, ["dataset.val=val", "dataset.val=other val"]),
        ([], {"world_size": 4}, ["| world_size=1 |", "| world_size=4 |"]),
    ],
)
def test_what_changes_a_result_is_never_averaged(tmp_path, extra, changes, told):
    run(tmp_path / "a", "icda", 0, 0.10)
    run(tmp_path / "b", "icda", 1, 0.20, *extra, **changes)
    text = "\n".join(rows(table([tmp_path])))
    assert len(text.splitlines()) == 2 and all(part in text for part in told), text


def test_a_long_number_is_shortened_where_it_still_tells_runs_apart(tmp_path):
    for name, lr in (("a", 0.0012345678901), ("b", 0.0034567890123)):
        run(tmp_path / name, "icda", 0, 0.1, f"schedule.lr={lr}", schedule_lr=lr)
    assert "schedule.lr=0.001235 " in table([tmp_path])
    run(tmp_path / "c", "icda", 0, 0.1, "schedule.lr=0.0012345678999", schedule_lr=0.0012345678999)
    assert "schedule.lr=0.0012345678901 " in table([tmp_path])


@pytest.mark.parametrize("by_record", [True, False])
def test_a_seed_counts_once_with_its_newest_run(tmp_path, caplog, by_record):
    days = ["2026-01-02T00:00:00+00:00", "2026-01-01T00:00:00+00:00"]
    new = run(tmp_path / "a", "icda", 0, 0.30, ended=days[0] if by_record else None)
    old = run(tmp_path / "b", "icda", 0, 0.10, ended=days[1] if by_record else None)
    os.utime(new / "summary.json", (1_000, 1_000) if by_record else (3_000, 3_000))  # copying may change it
    os.utime(old / "summary.json", (2_000, 2_000))
    assert "| 1 | 30.0 |" in table([tmp_path])
    assert f"left out: {old} has the same setting and seed=0 as {new}, which is newer" in caplog.text


def test_moved_copied_and_named_twice(tmp_path, caplog):
    folder = run(tmp_path / "a" / "x", "icda", 0, 0.10)
    run(tmp_path / "a" / "y", "icda", 1, 0.30)
    before = table([tmp_path])
    assert table([tmp_path, folder, tmp_path / "a"]) == before and caplog.text == ""
    shutil.move(tmp_path / "a", tmp_path / "b c")
    assert table([tmp_path / "b c"]) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["summary.json", "config/config.yaml", "config/hydra.yaml"])
@pytest.mark.parametrize("damage", [cut, Path.unlink, lambda p: p.write_bytes(b""), lambda p: p.write_text("[1]")])
def test_damaged_runs_are_left_out_with_a_line(tmp_path, caplog, name, damage):
    run(tmp_path / "a", "icda", 0, 0.10)
    damage(run(tmp_path / "b", "icda", 1, 0.90) / name)
    (row,) = rows(table([tmp_path]))
    assert "| 1 | 10.0 |" in row
    assert str(tmp_path / "b") in caplog.text and "left out" in caplog.text


def noted(folder: Path, choices: bool = True) -> Path:
    """Let a run's summary hold what it was, as a finished run's does."""
    path = folder / "summary.json"
    config = yaml.safe_load((folder / "config" / "config.yaml").read_text())
    files = yaml.safe_load((folder / "config" / "hydra.yaml").read_text())["hydra"]["runtime"]["choices"]
    noted = {**json.loads(path.read_text()), "config": config, **({"choices": files} if choices else {})}
    path.write_text(json.dumps(noted))
    return folder


def refused(folder: Path, *command: str, **settings) -> Path:
    """Let another command rewrite a run's ``config/``, as Hydra does before the run refuses."""
    shutil.rmtree(folder / "config")
    shutil.copytree(run(folder.parent / "other", *command, **settings) / "config", folder / "config")
    shutil.rmtree(folder.parent / "other")
    return folder


@pytest.mark.parametrize("choices", [True, False])
def test_a_refused_command_does_not_change_what_a_run_was(tmp_path, caplog, choices):
    folder = noted(run(tmp_path / "a", "icda", 3, 0.10, "schedule.lr=0.5", schedule_lr=0.5), choices)
    refused(folder, "dacs", 4, 0.1, "precision=bf16", "memory=low", precision="bf16", memory="low")
    found = read_run(folder)
    assert (found.settings["schedule.lr"], found.settings["precision"], found.seed) == ("0.5", "fp32", 3)
    known = {"dataset": "demo", "model": "icda_small", "cem": "style"}
    assert found.groups == {**known, **({"loss": "icda", "schedule": "demo"} if choices else {})}
    assert found.given == frozenset()
    (row,) = rows(table([tmp_path]))
    name = f"dataset=demo model=icda_small {'loss=icda ' if choices else ''}cem=style"
    assert row == f"| {name} | 1 | 10.0 | 11.0 | 1.5 |" and caplog.text == ""


def test_a_group_whose_file_is_not_known_is_told_by_its_settings(tmp_path):
    refused(noted(run(tmp_path / "a", "icda", 0, 0.10), choices=False), "dacs")
    noted(run(tmp_path / "b", "dacs", 0, 0.20))
    noted(run(tmp_path / "c", "dacs", 1, 0.40))
    assert rows(table([tmp_path])) == [
        "| loss.enhanced=1.0 | 1 | 10.0 | 11.0 | 1.5 |",
        "| loss=dacs loss.enhanced=0.0 | 2 | 30.0 ± 14.1 | 31.0 | 1.5 |",
    ]


def test_one_run_with_a_config_of_another_command_is_averaged_with_its_setting(tmp_path):
    refused(noted(run(tmp_path / "a", "icda", 0, 0.10), choices=False), "dacs")
    noted(run(tmp_path / "b", "icda", 1, 0.30))
    assert ["| 2 | 20.0 ± 14.1 |" in row for row in rows(table([tmp_path]))] == [True]


@pytest.mark.parametrize("name", ["config.yaml", "hydra.yaml", "overrides.yaml"])
@pytest.mark.parametrize("choices", [True, False])
def test_a_run_whose_summary_says_what_it_was_needs_no_config(tmp_path, name, choices):
    folder = noted(run(tmp_path / "a", "icda", 0, 0.10), choices)
    (folder / "config" / name).unlink()
    name = "dataset=demo model=icda_small loss=icda cem=style" if choices else "all"
    assert rows(table([tmp_path])) == [f"| {name} | 1 | 10.0 | 11.0 | 1.5 |"]


def test_finished_without_a_summary(tmp_path, caplog):
    run(tmp_path / "a", "icda", 0, 0.10)
    folder = run(tmp_path / "b", "icda", 1, None)
    (folder / "record.json").write_text(json.dumps([{"step": 800, "outcome": "finished", "world_size": 1}]))
    table([tmp_path])
    assert f"{folder}: step 800 of 800, stopped before its summary was written; give its command again" in caplog.text


def test_a_summary_of_other_steps_is_not_the_end_of_the_run(tmp_path):
    folder = run(tmp_path / "a", "icda", 0, 0.10)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "steps": 400}))
    with pytest.raises(UserError, match="a summary of 400 steps, its configuration says 800"):
        read_run(folder)


def test_per_class_and_each_run(tmp_path):
    for seed, (road, sky) in enumerate(((0.2, 0.5), (0.4, None))):
        run(tmp_path / f"s{seed}", "icda", seed, 0.1, iou={"road": road, "sky": sky, "bus": None})
    found = collect([tmp_path])
    head, _, row = markdown(found, per_class=True).splitlines()[-3:]
    assert head.endswith("| minutes | road | sky | bus |")
    assert row.endswith("| 1.5 | 30.0 ± 14.1 | 50.0 (1) | - |")  # deviations 10: sqrt(200)
    head, _, *each = markdown(found, each=True).splitlines()[-4:]
    assert head == "| setting | seed | mIoU | best | minutes | folder |"
    assert [re.findall(r"\| (\d) \|.*\| (\S+) \|$", line)[0] for line in each] == [
        (str(seed), str(tmp_path / f"s{seed}")) for seed in (0, 1)
    ]


def test_csv_has_all_digits(tmp_path):
    mious = (0.123456789012345, 0.2, 0.4)
    for seed, miou in enumerate(mious):
        run(tmp_path / f"a{seed}", "icda", seed, miou, iou={"road, wet": miou, "bus": None})
    run(tmp_path / "b", "dacs", 0, 0.05, "precision=bf16", precision="bf16", iou={"road, wet": 0.1, "bus": None})
    file = io.StringIO()
    write_csv(collect([tmp_path]), file, per_class=True)
    dacs, icda = csv.DictReader(io.StringIO(file.getvalue()))
    assert (dacs["loss"], dacs["precision"], dacs["runs"], dacs["miou_percent_std"]) == ("dacs", "bf16", "1", "")
    mean = sum(mious) / 3
    assert float(icda["miou_percent_mean"]) == pytest.approx(100 * mean, rel=1e-14)
    assert float(icda["miou_percent_std"]) == pytest.approx(
        100 * (sum((m - mean) ** 2 for m in mious) / 2) ** 0.5, rel=1e-12
    )
    assert float(icda["iou_percent_mean.road, wet"]) == float(icda["miou_percent_mean"])
    assert icda["iou_percent_mean.bus"] == "" and float(icda["minutes_mean"]) == 1.5
    file = io.StringIO()
    write_csv(collect([tmp_path]), file, each=True)
    each = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [float(r["miou_percent"]) for r in each] == [100 * m for m in (0.05, *mious)]
    assert [r["seed"] for r in each] == ["0", "0", "1", "2"] and each[0]["folder"] == str(tmp_path / "b")


def test_nothing_finished(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        table([tmp_path])
    with pytest.raises(UserError, match="there is no folder"):
        table([tmp_path / "none"])


def call(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_script(tmp_path):
    run(tmp_path / "a", "icda", 0, 0.10)
    run(tmp_path / "b", "icda", 1, None)
    done = call(tmp_path)
    assert done.returncode == 0 and done.stdout == table([tmp_path]) + "\n"
    assert done.stderr.splitlines()[0] == "1 unfinished run is left out:" and len(done.stderr.splitlines()) == 2
    done = call(tmp_path, "--csv", tmp_path / "t.csv", "--runs")
    assert done.returncode == 0 and done.stdout == ""
    assert next(csv.DictReader((tmp_path / "t.csv").open()))["miou_percent"] == "10.0"


def test_help_says_once_how_it_is_called():
    done = call("--help")
    assert done.returncode == 0 and "Gather finished runs into one table.\n" in done.stdout
    assert done.stdout.count("table.py") == 1


@pytest.mark.parametrize("arguments", [[], ["--cvs", "x"], ["/nowhere"], [".", "--csv", "/nowhere/x.csv"]])
def test_mistakes_are_told_in_one_line(tmp_path, arguments):
    run(tmp_path / "a", "icda", 0, 0.10)
    done = call(*(tmp_path if a == "." else a for a in arguments))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
