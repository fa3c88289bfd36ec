"""How long a person waits until a command does its work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import icda
from icda.benchmark.memory import GB
from icda.benchmark.settings import BenchmarkConfig
from icda.benchmark.timing import Result, Timing, measure
from icda.data import Cityscapes, DarkZurich
from icda.data.demo import DemoCounts, make_demo
from icda.errors import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

SCRIPTS = Path(icda.__file__).resolve().parents[1] / "scripts"
FILES = 10_000
"""Files of the tree that is opened, most of them images."""
SIZE = (64, 128)
"""Height and width of the demo data that a step is taken on."""
SMALLEST = (
    "dataset=demo",
    "model=icda_small",
    "dataset.prepare=null",
    *(f"dataset.{part}.size=[{SIZE[0]},{SIZE[1]}]" for part in ("source", "target", "val")),
    f"dataset.sampling.crop=[{SIZE[0]},{SIZE[0]}]",
    "schedule.batch_size=1",
    "schedule.max_steps=1",
    "logger=none",
    "panels=0",
    "workers=0",
    "progress=false",
)
"""Settings of ``scripts/train.py`` with which starting takes nearly all of the time."""


def measure_startup(config: BenchmarkConfig) -> Result:
    """Run commands from beginning to end, each in a process of its own, and open a large tree in this one.

    The rows are ``import icda``; a training whose settings are refused; a training of one step on tiny demo data,
    with its validation and its checkpoint, about which the result is; the prediction of one picture by its
    checkpoint; and opening Cityscapes and Dark Zurich, with labels and pairs, in a tree of ``FILES`` files. The
    files are read before, so that what is measured is work, not waiting for a disk.

    Args:
        config: Its ``device``, ``threads``, ``warmup`` and ``steps``, which is how often each command runs.

    Raises:
        UserError: If the scripts are not there, as in an installation without the repository, or one fails.
    """
    if not (SCRIPTS / "train.py").is_file():
        raise UserError(
            f"what=startup runs train.py and predict.py, but there is no {SCRIPTS / 'train.py'}; clone the "
            "repository and install icda from there, with pip install -e ."
        )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = make_demo(
            folder / "data" / "demo",
            seed=config.seed,
            counts=DemoCounts(source_train=2, source_val=1, target_train=2, target_val=1, target_test=1),
            size=SIZE,
            workers=1,
            progress=False,
        )
        rows = {name: _measure_command(command, config, folder) for name, command in _commands(config, made).items()}
        tree = make_large_tree(folder / "tree", made, FILES)
        rows[f"open {FILES} files"] = measure(lambda: open_tree(tree), config.warmup, config.steps)
    heading = (
        f"startup: commands from beginning to end on {config.device}, threads {config.threads}; first step: "
        "train.py for one step of one pair a domain, its validation and its checkpoint"
    )
    return Result(heading, rows["first step"], 1, rows, peak_memory_gb=_children_memory_gb())


def _commands(config: BenchmarkConfig, demo: Path) -> dict[str, Callable[[int], list[str]]]:
    """By row, the arguments for Python of the command's n-th run; they run in the folder that ``demo`` lies in."""
    train, predict = str(SCRIPTS / "train.py"), str(SCRIPTS / "predict.py")
    picture = min((demo / "DarkZurich" / "rgb_anon" / "test").rglob("*.png"))
    small = (*SMALLEST, f"data_dir={demo.parent}", f"device={config.device}")
    plain = (f"ckpt={Path('train_0')}", f"input={picture}", f"device={config.device}", "workers=0", "progress=false")
    return {
        "import icda": lambda number: ["-c", "import icda"],
        "refused setting": lambda number: [train, "schedule.max_steps=0", f"hydra.run.dir=refused_{number}"],
        "first step": lambda number: [train, *small, f"hydra.run.dir=train_{number}"],
        "prediction": lambda number: [predict, *plain, f"hydra.run.dir=predict_{number}"],
    }


def _measure_command(arguments: Callable[[int], list[str]], config: BenchmarkConfig, folder: Path) -> Timing:
    """Time runs of a command from beginning to end."""
    numbers = count()
    runs = [
        run_command(arguments(next(numbers)), config.threads, folder) for _ in range(config.warmup + config.steps)
    ]
    wall, cpu = zip(*runs[config.warmup :], strict=True)
    return Timing(list(wall), list(cpu))


def run_command(arguments: Sequence[str], threads: int | None, folder: Path) -> tuple[float, float]:
    """Run Python to the end.

    Args:
        arguments: Of the interpreter.
        threads: That PyTorch may use there; None leaves them as they are.
        folder: Where it runs.

    Returns:
        Seconds until it was done, and those that it and the processes that it waited for worked, on all cores.

    Raises:
        UserError: If it fails, unless it says in one line that a setting is refused.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    worked, start = _children_cpu(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, errors="replace"
    )
    seconds, worked = time.perf_counter() - start, _children_cpu() - worked
    told = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
    if done.returncode and not (len(told) == 1 and "is out of range" in told[0]):
        raise UserError(f"python {' '.join(arguments)} failed: {told[-1]}; run it by itself to see why")
    return seconds, worked


def _children_cpu() -> float:
    """Seconds that processes started from here have worked, those that have ended."""
    if resource is None:
        return 0.0
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _children_memory_gb() -> float | None:
    """Largest memory of a process started from here, in 10^9 bytes; None where the system does not tell."""
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GB


def make_large_tree(root: Path, demo: Path, files: int) -> Path:
    """Cityscapes and Dark Zurich's training splits, each file a link to one of the demo data.

    Args:
        root: Folder to make, on the file system of ``demo``.
        demo: Made by ``make_demo``.
        files: How many files; half of them are Cityscapes' images and labels, the rest Dark Zurich's night and day
            images but for a list of their pairs.

    Returns:
        ``root``, which holds ``Cityscapes`` and ``DarkZurich``.
    """
    image, label = (min((demo / "Cityscapes" / part / "train").rglob("*.png")) for part in ("leftImg8bit", "gtFine"))
    ending = label.name.rpartition("_")[2]  # which kind of ids the file holds
    night, day = (
        min((demo / "DarkZurich" / "rgb_anon" / "train" / time).rglob("*.png")) for time in ("night", "day")
    )
    scenes, pairs = files // 4, (files - files // 4 * 2 - 1) // 2
    for number in range(scenes):
        key = f"aachen_{number:06}_000019"
        for link, file in (
            (f"leftImg8bit/train/aachen/{key}_leftImg8bit.png", image),
            (f"gtFine/train/aachen/{key}_gtFine_{ending}", label),
        ):
            _link(file, root / "Cityscapes" / link)
    lines = []
    for number in range(1, pairs + 1):
        keys = [f"train/{time}/{drive}/{drive}_frame_{number:06}" for time, drive in DRIVES.items()]
        for key, file in zip(keys, (night, day), strict=True):
            _link(file, root / "DarkZurich" / "rgb_anon" / f"{key}_rgb_anon.png")
        lines.append(",".join(keys))
    drive = DRIVES["night"]
    listed = root / "DarkZurich" / "corresp" / "train" / "night" / drive / f"{drive}_ref_day.csv"
    listed.parent.mkdir(parents=True)
    listed.write_text("\n".join(lines) + "\n")
    return root


DRIVES = {"night": "GOPR0351", "day": "GOPR0345"}
"""Drives of Dark Zurich's training split, by time of day."""


def _link(file: Path, link: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, link)
    except OSError:  # no such thing there, or as many links as a file may have
        shutil.copyfile(file, link)


def open_tree(root: Path) -> tuple[Cityscapes, DarkZurich]:
    """Open source and target as a training does.

    Args:
        root: Holds ``Cityscapes`` and ``DarkZurich``.
    """
    return Cityscapes(str(root / "Cityscapes"), "train"), DarkZurich(str(root / "DarkZurich"), "train")
