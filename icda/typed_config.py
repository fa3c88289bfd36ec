"""Composed configurations as dataclasses, checked key by key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from icda.errors import UserError

Check = tuple[str, Callable[[Any], bool], str]
"""Dotted key, condition that its value must meet, and what is expected, for messages."""


def build_group(kind: Any, node: Any, path: str) -> Any:
    """A node of a configuration as an instance of a dataclass, checked key by key.

    Args:
        kind: The dataclass, or the type of a plain value.
        node: Resolved settings.
        path: Dotted name of the node, for messages; empty for the whole configuration.

    Raises:
        UserError: If a key is unknown or missing, or a value has the wrong type.
    """
    if not is_dataclass(kind):
        return _convert(kind, node, path)
    if not isinstance(node, DictConfig):
        raise UserError(
            f"{path}={node} is not a group of settings; expected {', '.join(f.name for f in fields(kind))}"
        )
    hints = get_type_hints(kind)
    prefix = f"{path}." if path else ""
    unknown = sorted(set(map(str, node)) - set(hints))
    if unknown:
        raise UserError(
            f"{prefix}{unknown[0]} is not a setting; {path or 'the configuration'} has {', '.join(hints)}"
        )
    defaults = {f.name for f in fields(kind) if f.default is not MISSING}
    missing = sorted(set(hints) - set(map(str, node)) - defaults)
    if missing:
        raise UserError(f"{prefix}{missing[0]} is missing from the configuration; see conf/ for what it means")
    return kind(
        **{name: build_group(hint, node[name], prefix + name) for name, hint in hints.items() if name in node}
    )


def _convert(hint: Any, value: Any, path: str) -> Any:
    """A plain value of the type that a hint names; an integer will do for a float, a number for a name."""
    if hint is Any:
        return value
    inner = get_args(hint)
    if type(None) in inner:
        return None if value is None else _convert(inner[0], value, path)
    if get_origin(hint) is list:
        if not isinstance(value, ListConfig):
            raise UserError(f"{path}={value} has the wrong type; expected a list such as [1, 2]")
        return [_convert(inner[0], v, f"{path}[{i}]") for i, v in enumerate(value)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (hint is float and is_number) or (hint is str and is_number):
        return hint(value)
    if not isinstance(value, hint) or (hint is int and not is_number):
        raise UserError(f"{path}={value} has the wrong type; expected {hint.__name__}")
    return value


def checked(kind: Any, cfg: DictConfig, checks: tuple[Check, ...]) -> Any:
    """A composed configuration as a dataclass, with the values that a type cannot judge checked as well.

    Args:
        kind: The dataclass.
        cfg: What Hydra composed.
        checks: Dotted key, condition that its value must meet, and what is expected, for messages.

    Raises:
        UserError: If a key is unknown or missing, or a value has the wrong type or is out of range.
    """
    config = build_group(kind, OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), "")
    for key, check, expected in checks:
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        if not check(value):
            raise UserError(f"{key}={value} is out of range; expected {expected}")
    return config
