"""What a multirun leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Tidy(Callback):
    """Removes the folders that Hydra makes for a multirun where nothing of interest was written into them."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Remove Hydra's own file, the jobs' folders that are empty, and then the folder of all if that is.

        Args:
            config: Hydra's, with the name of the folder.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = [path for path in folder.glob("*") if path.is_dir()]
        if not any(any(path.iterdir()) for path in jobs):  # what Hydra notes says of the others how they came about
            (folder / "multirun.yaml").unlink(missing_ok=True)
        for path in (*jobs, folder):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
