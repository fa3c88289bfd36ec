"""How the scripts meet a person: Hydra's configuration in, one line out for whatever the person can mend."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import gc
import logging
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from icda.errors import UserError

Main = Callable[[DictConfig, Path], object]
"""The work of a script: takes the composed configuration and the run's folder."""


def run(
    name: str,
    main: Main | str,
    conf: Path,
    objective: str | None = None,
    check: Callable[[DictConfig], object] | None = None,
) -> int:
    """Compose ``conf/<name>.yaml`` with the command line and call ``main(config, run_folder)``.

    Of several processes that were launched together (``torchrun``) the first one alone writes Hydra's files.

    Args:
        name: Configuration to compose.
        main: The work; called once, or once for each combination of a multirun. One that takes seconds to import is
            given by its dotted name (``icda.training.loop.train``), and is imported once nothing is wrong with the
            configuration.
        conf: Folder of configurations.
        objective: Which entry of what ``main`` returns a search has to make large; None where there is nothing to
            search for.
        check: Raises ``UserError`` for a configuration that ``main`` would refuse; called before ``main`` is
            imported. None checks nothing.

    Returns:
        Exit status: 0, 1 after a mistake of the person's (told in one line on standard error), 130 after Ctrl-C.
        Anything else is raised, with its traceback.
    """
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text in the terminal's encoding
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Hydra would print its own lines and leave; with this it raises, and the lines below decide.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    failed: list[int] = []

    def job(cfg: DictConfig) -> float | None:
        # Mistakes are told here, since Hydra would add a line of its own; the other runs of a sweep go on.
        result: object = None
        try:
            if check is not None:
                check(cfg)
            work = _imported(main) if isinstance(main, str) else main
            result = work(cfg, Path(HydraConfig.get().runtime.output_dir))
        except MISTAKES as error:
            if "SUBMITIT_EXECUTOR" in os.environ:  # a process of submitit's, which hands it to the one that waits
                raise
            failed.append(_fail(explain(error, name, conf)))
        return result.get(objective) if isinstance(result, Mapping) and objective is not None else None

    try:
        with _writes_of_the_main_process_alone(), _quiet_log():
            hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job)()
    except MISTAKES as error:
        failed.append(_fail(explain(error, name, conf)))
    except KeyboardInterrupt:
        return _fail("stopped by Ctrl-C", 130)
    except ValueError as error:
        if isinstance(error.__cause__, OSError):  # the log's file cannot be written
            return _fail(explain(error.__cause__, name, conf))
        if str(error).startswith("Config group override"):  # Hydra tells the type alone
            return _fail(_no_entry(conf, str(error)))
        if str(error).startswith("Only one of --run"):  # flags of Hydra's
            return _fail(str(error))
        if not failed or str(error) != "No trials are completed yet.":  # Optuna's; why they failed has been told
            raise
    return max(failed, default=0)


def _imported(name: str) -> Main:
    """A function by its dotted name, its module imported with all that it needs."""
    module, _, function = name.rpartition(".")
    if module not in sys.modules and gc.isenabled():
        # What modules are made of stays: looking through it for garbage again and again, while they are imported and
        # after, takes a sixth of the time up to the first step.
        gc.disable()
        try:
            import_module(module)
            gc.freeze()
            atexit.register(gc.unfreeze)  # libraries complain of what is left when Python ends
        finally:
            gc.enable()
    return getattr(import_module(module), function)


@contextlib.contextmanager
def _writes_of_the_main_process_alone() -> Iterator[None]:
    """Give the other processes of a run a folder for what Hydra writes that nobody sees."""
    if _rank() == 0:
        yield
        return
    given = sys.argv
    # Behind the last override, where argparse, which Hydra uses, takes them whatever flags follow.
    place = max((i for i, text in enumerate(given) if "=" in text and not text.startswith("-")), default=0) + 1
    with tempfile.TemporaryDirectory() as unseen:
        folders = [f"hydra.{kind}.dir={unseen}" for kind in ("run", "sweep")]
        sys.argv = [*given[:place], *folders, "hydra.output_subdir=null", *given[place:]]
        try:
            yield
        finally:
            sys.argv = given


@contextlib.contextmanager
def _quiet_log() -> Iterator[None]:
    """Let a log that cannot be written, as on a full disk, be no reason for a traceback a line."""
    before = logging.raiseExceptions
    logging.raiseExceptions = False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def _rank() -> int:
    """Number of this process among those that torchrun started, from 0."""
    return int(os.environ.get("RANK", "0"))


MISTAKES = (UserError, HydraException, OmegaConfBaseException, OSError)


# What Hydra says of an override that it cannot take apart.
_UNPARSED = (
    r"LexerNoViableAlt|no viable alternative|token recognition error|(mismatched|extraneous) input|"
    r"HydraException while evaluating"
)


def _fail(message: str, status: int = 1) -> int:
    process = f"process {_rank()}: " if _rank() else ""
    sys.stderr.write(f"error: {process}{message}\n")
    return status


def explain(error: Exception, name: str, conf: Path) -> str:
    """One line for a mistake.

    Args:
        error: What was raised, one of ``MISTAKES``.
        name: The configuration that was composed.
        conf: Folder of configurations, to name what was allowed.

    Raises:
        OSError: If ``error`` is one that the operating system has not numbered, which is a bug.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # a missing file of conf/ is both
        if error.errno is None:
            raise error
        what = f"{error.filename} cannot be used" if error.filename is not None else "a file cannot be written"
        return f"{what}: {error.strerror}; choose another place, for a run's folder with hydra.run.dir="
    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__ or "").split())
    if match := re.search(r"Could not (?:find|load) 'hydra/(?:sweeper|launcher)/(optuna|slurm|submitit_\w+)'", text):
        return f"{match[1]} needs packages that are not installed; pip install -e '.[sweep]'"
    if match := re.search(r"In '[^']*': Could not find '([^']+)'|Could not find '([^']+)'", text):
        group, _, value = (match[1] or match[2]).rpartition("/")
        if (conf / group).is_dir() and group:
            allowed = _entries(conf, group)
            if group == "schedule" and (conf / "dataset" / f"{value}.yaml").is_file():
                return (
                    f"dataset={value} has no schedule of its own, it is only for scoring (scripts/eval.py); train "
                    f"with another data set, or give schedule=..., one of {', '.join(allowed)}"
                )
            return f"{group}={value} is not known; {_nearest(value, allowed)}"
    if match := re.search(r"Could not override '([^']+)'", text):
        key, known = match[1], settings(name, conf)
        group = key.partition(".")[0]
        if key in known and group != key and "not in struct" in cause:
            return f"{key} belongs to a group that is not chosen; give {group}=... as well"
        return cause or text if key in known else f"{key} is not a setting; {_nearest(key, known)}"
    if re.search(_UNPARSED, text):
        return (
            f"{text}; a value with anything but plain letters, digits, spaces and ._-/ needs two pairs of quotes, "
            "such as \"input='Zürich (1).jpg'\"; in a list, each [ needs its ]"
        )
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        return f"{match[1]} is missing; give it as {match[1]}=..."
    return text


def _no_entry(conf: Path, text: str) -> str:
    """One line for a group that is given null or a number; Hydra's ``text``, the type alone, where none is found."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ChoiceSweep, Glob, QuotedString

    given = [word for word in sys.argv[1:] if word.startswith("~") or ("=" in word and not word.startswith("-"))]
    for override in OverridesParser.create().parse_overrides(given):
        group, value = override.key_or_group, override.value()
        parts = value.list if isinstance(value, ChoiceSweep) else [value]
        allowed_types = (str, list, dict, QuotedString, Glob, *([type(None)] if override.is_delete() else []))
        if all(isinstance(part, allowed_types) for part in parts):
            continue
        if group.startswith("hydra/"):
            return f"{override.input_line} is no name; give one, as in hydra/launcher=basic"
        if (conf / group).is_dir():
            return f"{override.input_line} is no name; leave it out, or {_nearest(group, _entries(conf, group))}"
    return text


def _entries(conf: Path, group: str) -> list[str]:
    """What a group offers."""
    return sorted(p.stem for p in (conf / group).glob("*.yaml") if not p.stem.startswith("_"))


def settings(name: str, conf: Path) -> list[str]:
    """Dotted names of all settings and groups of ``conf/<name>.yaml``, the groups' files merged."""
    top = OmegaConf.to_container(OmegaConf.load(conf / f"{name}.yaml"), resolve=False)
    names = {key for key in top if key not in ("defaults", "hydra")}
    for entry in top["defaults"]:
        for group in entry if isinstance(entry, dict) else ():
            for file in (conf / group).glob("*.yaml"):
                content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
                content.pop("defaults", None)
                names |= set(_leaves(content, group))
    return sorted(names)


def _leaves(node: object, prefix: str) -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    inner = [
        leaf for key, value in node.items() for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    ]
    return inner + ([prefix] if prefix else [])


def _nearest(name: str, allowed: list[str]) -> str:
    """What was allowed instead: everything where that is short, else what looks like it and its siblings."""
    if len(allowed) <= 12:
        return f"choose one of {', '.join(allowed)}"
    parent = name.rpartition(".")[0]
    siblings = [a for a in allowed if a.rpartition(".")[0] == parent]
    near = difflib.get_close_matches(name, allowed, 3, 0.7)
    listed = list(dict.fromkeys(near + siblings))
    return f"did you mean {near[0]}? Allowed here: {', '.join(listed)}" if near else f"allowed: {', '.join(listed)}"
