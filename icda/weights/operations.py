"""The operations of a pickle followed without running them, and the bounds that keep small files from doing much.

A pickle may share one value in many places, so that a few hundred bytes describe a value that takes years to hash or
to print. PyTorch's restricted reader runs no code, but it hashes and prints what it meets.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, NamedTuple

from icda.weights.stand_ins import OPERATIONS, full_name

WHOLE_MODEL = "holds a whole model"  # the message of Unfit for it
_DEEPEST = 50  # levels of tuples in tuples, of containers in containers
_SHARED = 5_000  # values that a tuple may have inside the tuples in it, each counted as often as it stands there
_UNFOLDED = 1_000_000  # values of a content beyond those that are there, each counted as often as it stands there
_KEPT = 8  # items of a tuple that are looked at; calls of weights take fewer


class Unfit(ValueError):
    """A pickle does what no weights need; the message is the end of a sentence that begins with the pickle."""


class _Seen(NamedTuple):
    """What is known of a value: its kind, a name or the first characters of a text, and a tuple's items."""

    kind: str  # text, number, name, tuple or other
    text: str = ""
    items: tuple[_Seen, ...] = ()
    size: int = 1
    depth: int = 0


_OTHER, _NUMBER = _Seen("other"), _Seen("number")
_PUSHED = MappingProxyType(
    {name: _OTHER for name in ("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "BINFLOAT")}
    | {name: _NUMBER for name in ("BININT", "BININT1", "BININT2", "LONG1")}
)
_CONTAINERS = (dict, list, tuple, set)
_TUPLES = MappingProxyType({"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3})


class Machine:
    """Follows a pickle's operations one by one, as PyTorch's restricted reader would run them."""

    def __init__(self) -> None:
        self._stack: list[_Seen] = []
        self._marked: list[list[_Seen]] = []
        self._memo: dict[int, _Seen] = {}

    def step(self, operation: str, value: Any) -> None:
        """Follow one operation.

        Args:
            operation: Its name in ``pickletools``.
            value: Its argument there.

        Raises:
            Unfit: If no weights need it.
            IndexError, KeyError: If the stack or memo does not hold what it takes.
        """
        if operation not in OPERATIONS:
            raise Unfit(f"uses the operation {operation}")
        stack = self._stack
        if operation in _PUSHED:
            stack.append(_PUSHED[operation])
        elif operation in ("BINUNICODE", "SHORT_BINSTRING"):
            stack.append(_Seen("text", value[:20]))
        elif operation == "GLOBAL":
            stack.append(_Seen("name", full_name(*value.split(" ", 1))))
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            items = [stack.pop() for _ in range(count)][::-1]
            stack.append(_tuple(items))
        elif operation in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[value])
        elif operation in ("BINPUT", "LONG_BINPUT"):
            self._memo[value] = stack[-1]
        elif operation == "MARK":
            self._marked.append(stack)
            self._stack = []
        elif operation in ("TUPLE", "APPENDS", "SETITEMS"):
            self._stack = self._marked.pop()
            self._stack.extend([_tuple(stack)] if operation == "TUPLE" else [])
        elif operation not in ("PROTO", "STOP"):
            self._combine(operation)

    def _combine(self, operation: str) -> None:
        """Follow an operation that takes values from the stack and leaves one of an unknown kind or none."""
        top = self._stack.pop()
        if operation in ("REDUCE", "NEWOBJ"):
            _check_call(self._stack.pop(), top)
            self._stack.append(_OTHER)
        elif operation == "BINPERSID":
            _check_reference(top)
            self._stack.append(_OTHER)
        elif operation == "SETITEM":
            self._stack.pop()
        elif operation == "BUILD" and self._stack[-1].kind != "other":
            raise Unfit("gives attributes to what is no object")


def _tuple(items: list[_Seen]) -> _Seen:
    inner = sum(item.size for item in items if item.kind == "tuple")
    depth = 1 + max((item.depth for item in items), default=0)
    if inner > _SHARED or depth > _DEEPEST:
        raise Unfit("nests tuples without end")
    return _Seen("tuple", "", tuple(items[:_KEPT]), 1 + len(items) + inner, depth)


def _check_call(called: _Seen, arguments: _Seen) -> None:
    # torch prints what is called where it is unknown, a nested value without end.
    if called.kind != "name" or arguments.kind != "tuple":
        raise Unfit("calls what is no name")
    items = arguments.items
    if called.text == "torch._tensor._rebuild_from_type_v2":
        if len(items) != 4:
            raise Unfit(f"calls {called.text} with {len(items)} arguments")
        _check_call(items[0], items[2])
    reserves = called.text.startswith("torch.") and called.text.endswith(("Tensor", "Storage"))
    reserves = reserves and bool(items)
    if reserves or (called.text == "builtins.bytearray" and any(item.kind == "number" for item in items)):
        raise Unfit("reserves memory without filling it")
    # Other codecs than this one, as which pickles write bytes, may take far longer than the text is long.
    if called.text == "_codecs.encode" and [i.text for i in items[1:]] not in (["latin1"], ["latin-1"]):
        raise Unfit("encodes a text as no bytes are saved")


def _check_reference(key: _Seen) -> None:
    """Check the key of a storage: a kind, a type, a name, a device, a length and, in a legacy file, a view."""
    kinds = [item.kind for item in key.items]
    fits = kinds[:1] + kinds[2:5] == ["text", "text", "text", "number"] and kinds[1] == "name" and len(kinds) <= 6
    view = [item.kind for item in key.items[5].items] if kinds[5:] == ["tuple"] else ["text", "number", "number"]
    if key.items and key.items[0].text == "module":
        raise Unfit(WHOLE_MODEL)
    if not fits or view != ["text", "number", "number"]:
        raise Unfit("refers to what is no tensor's bytes")


def check_nesting(content: object) -> None:
    """Check that a content can be walked through, copied and printed in a time that fits its size.

    Args:
        content: Nested dicts, lists and tuples; what else is in them is one value each.

    Raises:
        Unfit: If it is nested deeper than any weights, or shares its parts so often that it unfolds without end.
    """
    sizes: dict[int, tuple[int, int]] = {}  # by id, values and levels of a container; (1, 0) while it is open
    there = 0
    stack: list[tuple[object, bool]] = [(content, False)] if isinstance(content, _CONTAINERS) else []
    while stack:
        value, closing = stack.pop()
        parts = list(dict.values(value) if isinstance(value, dict) else value)
        inner = [part for part in parts if isinstance(part, _CONTAINERS)]
        if closing:
            inside = [sizes[id(part)] for part in inner]
            depth = 1 + max((depth for _, depth in inside), default=0)
            if depth > _DEEPEST:
                raise Unfit(f"is nested more than {_DEEPEST} levels deep")
            sizes[id(value)] = 1 + len(parts) + sum(size for size, _ in inside), depth
        elif id(value) not in sizes:
            sizes[id(value)] = 1, 0
            there += 1 + len(parts)
            stack.append((value, True))
            stack.extend((part, False) for part in inner)
    if sizes.get(id(content), (0, 0))[0] > _UNFOLDED + 10 * there:
        raise Unfit(f"unfolds to more than {_UNFOLDED} values")
