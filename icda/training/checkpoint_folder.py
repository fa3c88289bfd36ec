"""The ``checkpoints`` folder of a run: the last checkpoints, with which it can go on, and the best."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from icda.errors import DamagedFile, UserError
from icda.training import checkpoint
from icda.training.durable import remove_leftovers, write_whole

log = logging.getLogger(__name__)


class CheckpointFolder:
    """Keeps the newest checkpoints of a run: ``last.pt``, before it ``step_000200.pt`` and so on; and ``best.pt``.

    Whenever the process is killed, the folder holds a whole checkpoint to go on with: the newest or the one before.
    Making one removes the temporary files that killed processes left in the folder.

    Args:
        folder: The run's ``checkpoints`` folder; made when something is saved.
        keep: How many resumable checkpoints stay, ``last.pt`` among them; at least 1.
        last_step: The step of the folder's ``last.pt`` where the run goes on with it; None where there is none or
            where it is another run's or damaged, so that it is replaced.
        start_step: The step of the folder's checkpoint with which the run goes on; by default ``last_step``. None
            for a run that starts anew or from another folder: step files that it finds are another run's. They, or
            those of a later step than the run's own, are removed once its own first checkpoint is written.
    """

    def __init__(self, folder: Path, keep: int, last_step: int | None = None, start_step: int | None = None) -> None:
        assert keep >= 1, f"keep={keep}, expected 1 or more"
        self.folder = folder
        self.keep = keep
        self._last_step = last_step
        self._start_step = start_step
        self._own_files = last_step is not None or start_step is not None  # whether step files are this run's
        remove_leftovers(folder)

    @property
    def last(self) -> Path:
        """Where the newest checkpoint is."""
        return self.folder / checkpoint.LAST

    @property
    def best(self) -> Path:
        """Where the best checkpoint is."""
        return self.folder / checkpoint.BEST

    def save_last(self, content: dict[str, Any]) -> None:
        """Write ``last.pt``; the one before gets its step's name, the oldest goes.

        Args:
            content: See ``icda.training.checkpoint.content_of``; its step is not below that of the ``last.pt``
                before. One of the same step replaces it.

        Raises:
            OSError: See ``icda.training.checkpoint.save``; the checkpoints before are still there, perhaps the last
                under its step's name.
        """
        step = content["step"]
        named = self.keep > 1 and self._last_step is not None and self._last_step < step
        checkpoint.save(self.last, content, before_rename=self._name_last if named else lambda: None)
        self._last_step = step
        earlier = checkpoint.step_files(self.folder)
        own = [s for s in earlier if self._own_files and s < step][: self.keep - 1]
        self._own_files = True
        for s, path in earlier.items():
            if s not in own:
                _remove(path)

    def save_best(self, content: dict[str, Any]) -> None:
        """Write ``best.pt``.

        Raises:
            OSError: See ``icda.training.checkpoint.save``.
        """
        checkpoint.save(self.best, content)

    def adopt(self, used: Path, step: int) -> bool:
        """Take over the best checkpoint of the run that this one goes on with.

        Args:
            used: The checkpoint with which it goes on; the best is beside it, in this folder or another.
            step: That of ``used``.

        Returns:
            Whether ``best.pt`` is now here and the best up to ``step``; not where there is none, where it cannot be
            read, or where it is of a later step, as when the run goes on with an earlier checkpoint.

        Raises:
            OSError: If it cannot be copied.
        """
        best = used.resolve().parent / checkpoint.BEST
        if not best.is_file():
            return False
        try:
            content = checkpoint.read_file(best)
        except UserError as error:
            log.warning("%s; it is passed over", error.fault if isinstance(error, DamagedFile) else error)
            return False
        if "format" not in content:  # a published one, whose score nobody knows
            return False
        best_step = content["step"]
        if best_step > step:
            log.warning("%s is of step %d, later than the step %d with which the run goes on", best, best_step, step)
            return False
        if not (self.best.exists() and self.best.samefile(best)):
            with best.open("rb") as source:
                write_whole(self.best, lambda file: shutil.copyfileobj(source, file))
        return True

    def describe_newest(self) -> str:
        """With which checkpoint of this run one can go on, for a message: a clause without its end."""
        step = self._start_step if self._last_step is None else self._last_step
        if step is None:
            return "no checkpoint of this run has been written yet"
        is_last = self._last_step is not None and self.last.is_file()
        path = self.last if is_last else self.folder / checkpoint.step_name(step)
        return f"the last good checkpoint is {path}, of step {step}"

    def _name_last(self) -> None:
        """Give ``last.pt`` its step's name as well."""
        assert self._last_step is not None
        if not self.last.exists():  # somebody moved it away, or the last renaming failed half way
            return
        earlier = self.folder / checkpoint.step_name(self._last_step)
        try:
            earlier.hardlink_to(self.last)
        except OSError:  # it has that name already, since a process was killed here, or there are no links here
            if not (earlier.exists() and self.last.samefile(earlier)):
                self.last.replace(earlier)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # one file too many is no reason to stop a run
        log.warning("%s cannot be removed: %s", path, error.strerror or error)
