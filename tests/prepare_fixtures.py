"""Fixtures of the tests of ``scripts/prepare.py``: trees to be broken, and calls that return what is said."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
import trees
from conftest import CONF
from hydra import compose, initialize_config_dir
from tqdm import tqdm

from icda.data.prepare import prepare
from icda.errors import UserError


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> Path:
    return trees.write_all(tmp_path_factory.mktemp("all"))


@pytest.fixture
def data(made_once, tmp_path) -> Path:
    """A ``data_dir`` with all trees, to be broken."""
    return Path(shutil.copytree(made_once, tmp_path / "data"))


@pytest.fixture
def call(data, caplog) -> Callable[..., str]:
    """Calls prepare and returns what it says; ``error`` is the last line of a refusal."""

    def call_with(*overrides: str, error: str | None = None) -> str:
        settings = [f"data_dir={data}", "dataset.published=false", "workers=0", "progress=false", *overrides]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("prepare", settings)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            if error is None:
                prepare(cfg)
            else:
                with pytest.raises(UserError, match=error):
                    prepare(cfg)
        return "\n".join(record.getMessage() for record in caplog.records)

    return call_with


@pytest.fixture
def alone() -> Iterator[None]:
    """Ends the threads of tqdm and OpenCV: a process that has threads cannot be forked safely."""
    if tqdm.monitor is not None:
        tqdm.monitor.exit()
        tqdm.monitor = None
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(threads)
