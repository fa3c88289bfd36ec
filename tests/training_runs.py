"""Training runs in processes of their own, as a person or a scheduler starts, stops and kills them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
from conftest import TINY

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def settings(demo_data: Path, folder: Path, *overrides: str) -> list[str]:
    """Arguments of ``scripts/train.py`` for a tiny run in a folder."""
    return [*TINY, f"data_dir={demo_data}", "panels=0", f"hydra.run.dir={folder}", *overrides]


def start(arguments: list[str], before: str = "") -> subprocess.Popen:
    """Start ``scripts/train.py`` in a process group of its own, after some lines of Python."""
    script = f"import runpy, sys\nsys.argv[0] = 'scripts/train.py'\n{textwrap.dedent(before)}\n"
    script += "if __name__ == '__main__':\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, status: int = 0) -> tuple[str, str]:
    """What a run printed, once it has ended with the status."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, (process.returncode, out[-3000:], err[-3000:])
    return out, err


def tensors(node: object, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors in nested dicts and lists, by their path."""
    if isinstance(node, torch.Tensor):
        return {name: node}
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return {k: v for key, value in pairs for k, v in tensors(value, f"{name}.{key}").items()}


def assert_same_run(folder: Path, other: Path) -> None:
    """Both runs ended with the same networks, teacher, frozen encoder, prototypes, optimiser and scores, exactly."""
    one, two = (torch.load(f / "checkpoints" / "last.pt", weights_only=True) for f in (folder, other))
    assert one["step"] == two["step"] and one["metrics"] == two["metrics"]
    expected, found = tensors(one), tensors(two)
    parts = {".".join(name.split(".")[:3]) for name in expected}
    assert {".training.pca", ".training.optimizer"} <= parts, parts
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert one["training"]["best_miou"] == two["training"]["best_miou"]
    assert scores(folder) == scores(other)


def scores(folder: Path) -> list[dict]:
    """The validations of a run, without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
