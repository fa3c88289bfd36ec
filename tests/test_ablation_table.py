"""The table of ablations: rows by name, held-out sets, and differences by seed, with figures computed by hand."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from test_table import call, rows, run

from icda.errors import UserError
from icda.finished_runs import collect
from icda.table import markdown, pairing, table, write_csv

# (ablation, seed, mIoU on val, mIoU on report)
ABLATION = (
    ("01_dacs", 0, 0.30, 0.200),
    ("01_dacs", 1, 0.31, 0.240),
    ("02_cem", 0, 0.20, 0.230),
    ("02_cem", 1, 0.21, 0.290),
    ("02_cem", 2, 0.22, 0.500),
    ("10_full", 1, 0.40, 0.300),
)
RATES = {"01_dacs": 1e-3, "02_cem": 2e-3, "10_full": 3e-3}


def ablation(folder: Path, experiment: str = "x_ablation", **changes) -> Path:
    """The runs of ``ABLATION``; every ablation sets the learning rate."""
    for name, seed, miou, report in ABLATION:
        held_out = {"report": {"miou": report, "iou": {"road": report + 0.1, "bus": None}}}
        named = {"experiment": experiment, "ablation": name}
        where = folder / experiment / name / f"seed{seed}"
        run(where, "icda", seed, miou, held_out=held_out, named=named, schedule_lr=RATES[name], **changes)
    return folder


def test_an_ablation_in_the_order_of_its_names_with_what_was_held_out(tmp_path):
    text = table([ablation(tmp_path)])
    assert text.splitlines() == [
        "All runs: dataset=demo model=icda_small loss=icda cem=style",
        "",
        "| ablation | n | mIoU | best | report | minutes |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 01_dacs | 2 | 30.5 ± 0.7 | 31.5 | 22.0 ± 2.8 | 1.5 |",
        "| 02_cem | 3 | 21.0 ± 1.0 | 22.0 | 34.0 ± 14.2 | 1.5 |",  # deviations -11, -5, 16: sqrt(402 / 2)
        "| 10_full | 1 | 40.0 | 41.0 | 30.0 | 1.5 |",
    ]


def test_the_difference_to_the_row_above_over_the_seeds_of_both(tmp_path):
    runs = collect([ablation(tmp_path)])
    head, _, *body = markdown(runs, paired=pairing(runs, "report")).splitlines()[2:]
    assert head == "| ablation | n | mIoU | best | report | report less row above (n) | minutes |"
    # 23 - 20 and 29 - 24, deviations 1: sqrt(2); the third seed has no partner. Then 30 - 29, of seed 1 alone.
    assert [line.split(" | ")[-2] for line in body] == ["-", "+4.0 ± 1.4 (2)", "+1.0 (1)"]
    _, _, *body = markdown(runs, paired=pairing(runs)).splitlines()[2:]
    assert [line.split(" | ")[-2] for line in body] == ["-", "-10.0 ± 0.0 (2)", "+19.0 (1)"]
    _, _, *body = markdown(runs, paired=pairing(runs, "report", "02_cem")).splitlines()[2:]
    assert [line.split(" | ")[-2] for line in body] == ["-4.0 ± 1.4 (2)", "-", "+1.0 (1)"]
    _, _, *body = markdown(runs, each=True, paired=pairing(runs, "report")).splitlines()[2:]
    assert [line.split(" | ")[-3] for line in body] == ["-", "-", "+3.0", "+5.0", "-", "+1.0"]


def test_differences_are_of_the_same_images_alone(tmp_path):
    ablation(tmp_path)
    ablation(tmp_path, "y_ablation", val="another val", dataset_score_also={"report": {"frames": [0, 1]}})
    runs = collect([tmp_path])
    _, _, *body = markdown(runs, paired=pairing(runs, "report")).splitlines()[-8:]
    assert [line.split(" | ")[0] for line in body] == [
        f"| {experiment}_ablation/{name}" for experiment in "xy" for name in RATES
    ]
    expected = ["-", "+4.0 ± 1.4 (2)", "+1.0 (1)"]
    assert [line.split(" | ")[-2] for line in body] == expected * 2
    _, _, *body = markdown(runs, paired=pairing(runs, "val", "10_full")).splitlines()[-8:]
    assert [line.split(" | ")[-2] for line in body] == ["-9.0 (1)", "-19.0 (1)", "-"] * 2


def test_runs_with_and_without_names_and_held_out_sets(tmp_path):
    ablation(tmp_path)
    run(tmp_path / "old", "dacs", 0, 0.05)
    run(tmp_path / "experiment", "dacs", 0, 0.04, named={"experiment": "x_dacs", "ablation": None}, precision="bf16")
    body = rows(table([tmp_path]))
    assert [line.split(" | ")[0] for line in body] == ["| 01_dacs", "| 02_cem", "| 10_full", "| -", "| x_dacs"]
    assert "precision=bf16" in body[4] and "loss=dacs" in body[3]
    assert [line.split(" | ")[-2] for line in body] == ["22.0 ± 2.8", "34.0 ± 14.2", "30.0", "-", "-"]


def test_a_mean_over_some_of_the_runs_says_over_how_many(tmp_path):
    ablation(tmp_path)
    named = {"experiment": "x_ablation", "ablation": "02_cem"}
    run(tmp_path / "without", "icda", 3, 0.23, iou={"road": 0.5}, named=named, schedule_lr=RATES["02_cem"])
    dacs, cem, _ = rows(markdown(collect([tmp_path]), per_class=True))
    assert dacs.split(" | ")[4:6] == ["22.0 ± 2.8", "1.5"]
    assert cem.split(" | ")[1:6] == ["4", "21.5 ± 1.3", "22.5", "34.0 ± 14.2 (3)", "1.5"]
    assert cem.endswith("| 50.0 (1) | 44.0 ± 14.2 (3) |")


def test_a_setting_that_a_name_does_not_tell_is_told(tmp_path):
    ablation(tmp_path)
    named = {"experiment": "x_ablation", "ablation": "10_full"}
    run(tmp_path / "longer", "icda", 0, 0.5, named=named, schedule_lr=3e-3, schedule_max_steps=900)
    body = rows(table([tmp_path]))
    assert [re.findall(r"max_steps=\d+", line) for line in body] == [["max_steps=800"]] * 3 + [["max_steps=900"]]
    runs = collect([tmp_path])
    with pytest.raises(UserError, match="several rows are called 10_full"):
        pairing(runs, "val", "10_full")
    for wrong, message in (
        ({"name": "test"}, "no run has scores of a set test; choose one of val, report"),
        ({"to": "11_x"}, "no run is of or in 11_x; choose one of 01_dacs, 02_cem, 10_full, or a folder"),
        ({"to": str(tmp_path)}, f"several rows lie in {tmp_path}, with different settings; name the folder of one"),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            pairing(runs, **wrong)


def test_differences_to_the_runs_of_a_folder(tmp_path, monkeypatch):
    """Candidates have the name of the recipe that they differ from, so that it cannot be told by its name."""
    ablation(tmp_path / "published")
    ablation(tmp_path / "candidate", schedule_max_steps=900)
    runs = collect([tmp_path])
    with pytest.raises(UserError, match="several rows are called 02_cem"):
        pairing(runs, "report", "02_cem")
    monkeypatch.chdir(tmp_path)
    for to in ("published/x_ablation/02_cem", str(tmp_path / "published/x_ablation/02_cem")):
        head, _, *body = markdown(runs, paired=pairing(runs, "report", to)).splitlines()[-8:]
        assert f"| report less {to} (n) |" in head
        gaps = sorted((line.split(" | ")[0].strip("| "), line.split(" | ")[-2]) for line in body)
        dacs, full = ("01_dacs", "-4.0 ± 1.4 (2)"), ("10_full", "+1.0 (1)")  # of 20 - 23 and 24 - 29; of 30 - 29
        assert gaps == [dacs, dacs, ("02_cem", "+0.0 ± 0.0 (3)"), ("02_cem", "-"), full, full]
        settings = {tuple(line.strip("| ").split(" | ")[:2]) for line in body}
        assert settings == {
            ("02_cem", "schedule.max_steps=800"),  # the row of the folder
            *((name, what) for name in ("01_dacs", "10_full") for what in ("-", "schedule.max_steps=900")),
            ("02_cem", "schedule.max_steps=900"),
        }


def test_csv_of_an_ablation(tmp_path):
    runs = collect([ablation(tmp_path)])
    file = io.StringIO()
    write_csv(runs, file, per_class=True, paired=pairing(runs, "report"))
    dacs, cem, full = csv.DictReader(io.StringIO(file.getvalue()))
    assert [(r["experiment"], r["ablation"]) for r in (dacs, cem, full)] == [("x_ablation", name) for name in RATES]
    assert float(cem["miou_percent_mean.report"]) == pytest.approx(34, rel=1e-12)
    assert float(cem["miou_percent_std.report"]) == pytest.approx(201**0.5, rel=1e-12)
    assert float(cem["difference_percent_mean"]) == pytest.approx(4, rel=1e-12)
    assert float(cem["difference_percent_std"]) == pytest.approx(2**0.5, rel=1e-12)
    assert [r["difference_runs"] for r in (dacs, cem, full)] == ["0", "2", "1"]
    assert dacs["difference_percent_mean"] == "" == full["difference_percent_std"]
    file = io.StringIO()
    write_csv(runs, file, each=True, paired=pairing(runs, "report"))
    each = list(csv.DictReader(io.StringIO(file.getvalue())))
    assert [round(float(r["miou_percent.report"]), 9) for r in each] == [20, 24, 23, 29, 50, 30]
    assert [r["difference_percent"] and round(float(r["difference_percent"]), 9) for r in each] == [
        "",
        "",
        3,
        5,
        "",
        1,
    ]


def test_iou_of_held_out_sets(tmp_path):
    held_out = {"report": {"miou": 0.2, "iou": {"road": 0.3, "bus": None}}}
    run(tmp_path / "a", "icda", 0, 0.1, iou={"road": 0.5, "bus": 0.1}, held_out=held_out)
    head, _, row = markdown(collect([tmp_path]), per_class=True).splitlines()[-3:]
    assert head.endswith("| report | minutes | road | bus | report: road | report: bus |")
    assert row.endswith("| 20.0 | 1.5 | 50.0 | 10.0 | 30.0 | - |")


def test_the_script_with_differences(tmp_path):
    ablation(tmp_path)
    done = call(tmp_path, "--paired", "report", "--against", "01_dacs")
    runs = collect([tmp_path])
    assert done.stdout == markdown(runs, paired=pairing(runs, "report", "01_dacs")) + "\n" and done.stderr == ""
    assert call(tmp_path, "--paired").stdout == markdown(runs, paired=pairing(runs)) + "\n"
    wrong = call(tmp_path, "--paired", "test")
    assert (
        wrong.returncode == 1
        and wrong.stderr == "error: no run has scores of a set test; choose one of val, report\n"
    )


def test_a_recipe_and_the_row_of_an_ablation_that_is_the_same_setting_are_two_rows(tmp_path):
    for name in ({"experiment": "x_ablation", "ablation": "10_full"}, {"experiment": "x_icda", "ablation": None}):
        run(tmp_path / name["experiment"], "icda", 0, 0.5, named=name)
    assert [line.split(" | ")[0] for line in rows(table([tmp_path]))] == ["| 10_full", "| x_icda"]
