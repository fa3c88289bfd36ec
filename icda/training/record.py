"""``record.json``: where, when and with what each part of a run was trained, and how the part ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import icda
from icda.training.diagnostics import peak_memory
from icda.training.durable import write_whole
from icda.versions import versions

log = logging.getLogger(__name__)

LIBRARIES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "albumentations",
    "opencv-python-headless",
    "einops",
    "hydra-core",
    "omegaconf",
    "tensorboard",
)
_GIT_SECONDS = 10  # after which a call of git is given up
_LONGEST = 500  # characters of an error's line
# What would make git look at another repository than the folder's, as within a hook.
_GIT_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")


class Record:
    """The parts of a run, one for each start, in a file that is whole at every moment.

    A part is in the file from its start on, and brought up to date with every ``update``; one whose process was
    killed has no end (``outcome`` and ``ended`` are null) and the figures of its last update. Parts that the file
    holds already stay, so a resumed run appends. In a run of several processes one alone keeps the record.

    Each part holds:

    - ``started``, ``ended``: UTC, ISO 8601.
    - ``host``; ``command``: the command line, quoted for a shell; ``folder``: the working folder.
    - ``git``: see ``git_facts``; ``versions``: of Python, icda and ``LIBRARIES``; ``torch_build``, ``cuda``,
      ``cudnn``: as torch names them.
    - ``device``: name of the GPU or ``cpu``; ``device_count``: GPUs that the process sees; ``cpu``: model, logical
      cores of the machine, threads of torch.
    - ``world_size``, ``precision``, ``seed``, ``first_step``, ``resumed_from``, ``images_per_step``.
    - ``step`` that was reached; ``seconds`` since the start, validations and checkpoints included;
      ``images_per_second``: ``images_per_step`` times the part's steps over these seconds; ``peak_memory_gb``: see
      ``icda.training.diagnostics.peak_memory``; ``skipped``: steps that the run left out so far, since their loss
      or gradient was not finite, those of earlier parts included.
    - ``outcome``: how it ended, such as ``finished``, ``stopped by SIGTERM`` or ``failed: ...``.

    Nothing of the environment is written.

    Args:
        path: Of ``record.json``; its folder is made if need be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts: list[dict[str, Any]] = []
        self._started = 0.0
        self._device = torch.device("cpu")

    def start(
        self,
        *,
        device: torch.device,
        world_size: int,
        precision: str,
        seed: int,
        step: int,
        images_per_step: int,
        resumed_from: Path | None = None,
        skipped: int = 0,
    ) -> None:
        """Add a part and write the file.

        Args:
            device: That this process trains on.
            world_size: Processes that train together.
            precision: ``str`` of ``icda.training.precision.Precision``.
            seed: Of the run.
            step: Steps that were done before.
            images_per_step: Pairs of a step, over all passes and processes, times the domains that they are of:
                source and target, or source alone. A pair (S and its twin E, T and its reference R) counts as one
                image, as in the literature.
            resumed_from: The checkpoint that the run goes on from, or None.
            skipped: Steps that earlier parts of the run left out.

        Raises:
            OSError: If the file can be neither read nor written.
        """
        self._parts = _earlier_parts(self.path)
        self._started, self._device = time.perf_counter(), device
        self._parts.append(
            {
                "started": _now(),
                **_surroundings(device),
                "world_size": world_size,
                "precision": precision,
                "seed": seed,
                "first_step": step,
                "resumed_from": None if resumed_from is None else str(resumed_from),
                "images_per_step": images_per_step,
                **self._figures(step, step, images_per_step),
                "skipped": skipped,
                "ended": None,
                "outcome": None,
            }
        )
        self._write()

    def update(self, step: int, skipped: int = 0) -> None:
        """Bring the part's figures up to date, as with each checkpoint.

        A file that cannot be written is a warning: the record is not worth a run.

        Args:
            step: Steps done.
            skipped: Steps left out in the whole run so far.
        """
        part = self._part
        part.update(self._figures(step, part["first_step"], part["images_per_step"]), skipped=skipped)
        try:
            self._write()
        except OSError as error:
            log.warning("%s cannot be written: %s; the training goes on without it", self.path, error.strerror)

    def end(self, outcome: str, step: int, skipped: int = 0) -> None:
        """Note how the part ended; a file that cannot be written is a warning, as in ``update``.

        Args:
            outcome: ``finished``, ``stopped by SIGTERM``, or what ``failed`` makes of an error.
            step: Steps done.
            skipped: Steps left out in the whole run.
        """
        self._part.update(ended=_now(), outcome=outcome)
        self.update(step, skipped)

    @property
    def _part(self) -> dict[str, Any]:
        assert self._parts, f"{self.path}: start() comes first"
        return self._parts[-1]

    def _figures(self, step: int, first_step: int, images_per_step: int) -> dict[str, Any]:
        seconds = time.perf_counter() - self._started
        speed = (step - first_step) * images_per_step / seconds
        return {
            "step": step,
            "seconds": round(seconds, 3),
            "images_per_second": round(speed, 3),
            "peak_memory_gb": {name: round(value, 3) for name, value in peak_memory(self._device).items()},
        }

    def _write(self) -> None:
        content = json.dumps(self._parts, indent=2) + "\n"
        write_whole(self.path, lambda file: file.write(content.encode()))


def _surroundings(device: torch.device) -> dict[str, Any]:
    """What a part says of machine, command and software."""
    return {
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "folder": _working_folder(),
        "git": git_facts(Path(icda.__file__).parent),
        "versions": versions(*LIBRARIES),
        "torch_build": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
        "device_count": torch.cuda.device_count(),
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def failed(error: BaseException) -> str:
    """The outcome of a part that an error ended, in one line."""
    message = " ".join(str(error).split())
    line = f"failed: {type(error).__name__}: {message}" if message else f"failed: {type(error).__name__}"
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def git_facts(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository that a folder belongs to.

    Args:
        folder: Of a Python package.

    Returns:
        ``commit`` and ``clean``: whether no file that git knows differs from the commit (files that it does not know
        do not count, as in ``git describe --dirty``), or None if git could not tell. None in place of all if the
        package is not part of a repository (one that is merely installed below a repository is not), nothing is
        committed, git is missing, or git refuses to open it because another user owns it.
    """
    commit = None
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is not None:
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "clean": None if changed is None else not changed}


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails, for whatever reason."""
    environment = {name: value for name, value in os.environ.items() if name not in _GIT_ELSEWHERE}
    # It asks for nothing, leaves the index as it is, and starts no daemon that a repository's settings name.
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def cpu_model() -> str:
    """The processor's name, as the system gives it; its architecture where the system gives none."""
    with contextlib.suppress(OSError):  # where it is not Linux
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _working_folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted
        return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _earlier_parts(path: Path) -> list[dict[str, Any]]:
    """The parts that a file holds; one that holds something else is renamed, with a warning."""
    if not path.exists():
        return []
    try:
        parts = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
            return parts
    except (ValueError, RecursionError):
        parts = None
    number = 1
    while (aside := path.with_name(f"{path.stem}.damaged_{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)
    log.warning("%s is not a record of icda, or damaged; it is now %s, and a new record starts", path, aside.name)
    return []
