"""What stands in a content for objects that are not weights, and a reader of pickles that makes nothing else.

PyTorch's restricted reader (``weights_only``) takes additional classes from one set for the whole process, through
which stand-ins would reach other threads, and the classes a program has allowed there would reach us. This module
has the form that ``torch.load`` takes for ``pickle_module`` instead (an ``Unpickler`` and a ``load``).

Why it is safe: nothing is imported. No name becomes an object of Python's own, except constants (dtypes, storage
types): a name is looked up in a fixed table of makers, which check their arguments, or becomes a class ``Inert`` of
this one read. Only these may be called; the state of objects is dropped; items are set in plain lists and dicts
alone; operations beyond those of PyTorch's restricted reader do not exist here (among them the extension registry
and all that looks up names otherwise). The interpreter of operations is the one in Python that ``pickle`` has, since
the one in C allows no operation to be removed and sets attributes of whatever a file names.
"""

from __future__ import annotations

import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, in which protocol 2 is written
from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType
from typing import IO

import torch
from torch import Tensor

# What training frameworks save beside the tensors: whole packages, modules without those below them, single names.
_PACKAGES = (
    *("pytorch_lightning", "lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
    *("omegaconf", "jsonargparse", "yacs", "addict", "easydict", "mmcv", "mmengine", "pathlib", "collections"),
    *("typing", "datetime", "decimal", "numpy.random", "torch.optim", "torch.nn.modules", "torch.torch_version"),
    *("ml_collections", "munch", "box"),
)
_MODULES = (
    *("numpy", "numpy.dtypes", "numpy.core.multiarray", "numpy.core.numeric"),
    *("numpy._core.multiarray", "numpy._core.numeric"),  # NumPy 2
)
_NAMES = frozenset(
    {"argparse.Namespace", "functools.partial", "copyreg._reconstructor", "uuid.UUID", "fractions.Fraction"}
    | {"types.SimpleNamespace", "re._compile", "re.Pattern", "zoneinfo.ZoneInfo._unpickle", "ipaddress.IPv4Address"}
    | {f"builtins.{n}" for n in ("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object")}
    | {f"builtins.{n}" for n in ("range", "slice", "str", "tuple")}
)
# What PyTorch's restricted reader makes itself, beside names of torch.
READ = frozenset(
    {"collections.OrderedDict", "collections.Counter", "_codecs.encode"}
    | {"builtins.bytearray", "builtins.set", "builtins.complex"}
)
# Classes whose items a pickle sets one by one.
_MAPPINGS = frozenset({"defaultdict", "AttributeDict", "EasyDict", "Dict", "ConfigDict", "CfgNode", "Munch", "Box"})
_LISTS = frozenset({"deque"})
# All that PyTorch's restricted reader knows.
OPERATIONS = frozenset(
    {"PROTO", "STOP", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK"}
    | {
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "EMPTY_TUPLE",
        "EMPTY_LIST",
        "EMPTY_DICT",
    }
    | {"EMPTY_SET", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID"}
    | {"BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "LONG1"}
)


class Inert:
    """Stands in a content for an object that is not weights; takes whatever a pickle gives it and does nothing.

    For each replaced name a class of its own is made, whose ``__module__`` and ``__qualname__`` are that name.
    """


class _InertMapping(Inert):
    def __new__(cls) -> OrderedDict[object, object]:
        return OrderedDict()


class _InertList(Inert):
    def __new__(cls) -> list[object]:
        return []


def full_name(module: str, attribute: str) -> str:
    """The name in Python 3 of what a pickle names, ``module.attribute``."""
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"


def has_stand_in(full: str) -> bool:
    """Whether a name is of a known container, which a stand-in replaces."""
    if full in READ or not all(part.isidentifier() for part in full.split(".")):
        return False
    packages = tuple(f"{package}." for package in _PACKAGES)
    return full in _NAMES or full.rpartition(".")[0] in _MODULES or full.startswith(packages)


class _Maker:
    """The only thing beside stand-ins that a pickle may call here."""

    def __init__(self, make: Callable[..., object]) -> None:
        self.make = make


def _made(called: object, arguments: object) -> object:
    if type(arguments) is not tuple:
        raise pickle.UnpicklingError("a call without arguments")
    if type(called) is _Maker:
        return called.make(*arguments)
    if isinstance(called, type) and issubclass(called, Inert):
        return called()
    raise pickle.UnpicklingError("a call of what is no name")


def _expect(fits: bool) -> None:
    if not fits:
        raise pickle.UnpicklingError("arguments that nothing is made from")


def _all_of(values: object, *kinds: type) -> bool:
    return type(values) in (tuple, list, torch.Size) and all(type(value) in kinds for value in values)


def _tensor(storage: object, offset: object, size: object, stride: object, *rest: object) -> Tensor | Inert:
    _expect(isinstance(storage, torch.storage.TypedStorage) and type(offset) is int)
    _expect(_all_of(size, int) and _all_of(stride, int))
    if rest[2:] and rest[2]:  # lazily conjugated or negated: not the values that are stored
        return Inert()
    # A view of the whole storage has its bounds checked; setting the storage directly would enlarge it instead.
    return torch.empty(0, dtype=storage.dtype).set_(storage).as_strided(size, stride, offset)


def _parameter(data: object, *_: object) -> Tensor | Inert:
    _expect(isinstance(data, Tensor | Inert))
    return data


def _of_type(make: object, kind: object, arguments: object, *_: object) -> object:
    _expect(type(make) is _Maker and make.make in (_tensor, _parameter))
    return _made(make, arguments)


def _mapping(*arguments: object) -> OrderedDict[object, object]:
    pairs = arguments[0] if arguments else ()
    if type(pairs) in (dict, OrderedDict):
        return OrderedDict(pairs)
    _expect(len(arguments) < 2 and _all_of(pairs, tuple, list))
    return OrderedDict(pairs)


def _set(*arguments: object) -> set[object]:
    _expect(len(arguments) < 2 and all(type(values) in (tuple, list) for values in arguments))
    return set(*arguments)


def _bytes(text: object, encoding: object) -> bytes:
    _expect(type(text) is str and type(encoding) is str and encoding in ("latin1", "latin-1"))
    return text.encode("latin1")


def _bytearray(*arguments: object) -> bytearray:
    _expect(bool(arguments) and type(arguments[0]) in (str, bytes))
    return bytearray(arguments[0] if type(arguments[0]) is bytes else _bytes(*arguments))


def _complex(*arguments: object) -> complex:
    _expect(_all_of(arguments, int, float))
    return complex(*arguments)


def _size(values: object) -> torch.Size:
    _expect(_all_of(values, int))
    return torch.Size(values)


def _device(*arguments: object) -> torch.device:
    _expect(_all_of(arguments, int, str))
    return torch.device(*arguments)


_MAKERS = MappingProxyType(
    {"collections.OrderedDict": _Maker(_mapping), "collections.Counter": _Maker(_mapping)}
    | {"builtins.set": _Maker(_set), "builtins.bytearray": _Maker(_bytearray), "builtins.complex": _Maker(_complex)}
    | {"_codecs.encode": _Maker(_bytes), "torch.Size": _Maker(_size), "torch.device": _Maker(_device)}
    | {f"torch._utils.{name}": _Maker(_tensor) for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}
    | {"torch._utils._rebuild_parameter": _Maker(_parameter)}
    | {"torch._utils._rebuild_parameter_with_state": _Maker(_parameter)}
    | {"torch._tensor._rebuild_from_type_v2": _Maker(_of_type)}
)
# Beside those, what a file with tensors of rarer kinds names, which are not weights that could be used.
_OF_TORCH = frozenset(
    {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.serialization._get_layout"}
    | {f"torch._utils._rebuild_{kind}" for kind in ("tensor_v3", "sparse_tensor", "qtensor")}
    | {"torch._utils._rebuild_meta_tensor_no_storage", "torch._utils._rebuild_wrapper_subclass"}
)


class Unpickler(pickle._Unpickler):
    """Reads a pickle as ``pickle.Unpickler`` does, with stand-ins for all that is no tensor and no plain value.

    Raises:
        pickle.UnpicklingError: From ``load``, with ``GLOBAL`` and the name where that has no stand-in; what else
            damaged bytes raise is of any kind.
    """

    def __init__(self, file: IO[bytes], *, encoding: str = "utf-8") -> None:
        # Texts of Python 2 that are none (bytes of NumPy values) must not end the reading.
        super().__init__(file, encoding=encoding, errors="backslashreplace")
        self._stand_ins: dict[str, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> object:
        """What stands on the stack for a name: a maker, a constant of torch or a stand-in."""
        full = full_name(module, name)
        if full in _MAKERS:
            return _MAKERS[full]
        if full in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
            return torch.UntypedStorage
        if module == "torch" and isinstance(constant := vars(torch).get(name), torch.dtype):
            return constant
        if not has_stand_in(full) and full not in _OF_TORCH:
            raise pickle.UnpicklingError(f"GLOBAL {full} has no stand-in")
        if full not in self._stand_ins:
            base = _InertMapping if name in _MAPPINGS else _InertList if name in _LISTS else Inert
            module, _, name = full.rpartition(".")
            self._stand_ins[full] = type(name, (base,), {"__module__": module, "__qualname__": name})
        return self._stand_ins[full]

    def load_call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _made(self.stack[-1], arguments)

    def load_build(self) -> None:
        self.stack.pop()  # the state: attributes, which neither tensors nor stand-ins need

    def load_append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def load_setitems(self) -> None:
        self._update(self.pop_mark())

    def load_binpersid(self) -> None:
        key = self.stack.pop()
        # torch.load knows other kinds of references, for whose classes it looks into source files.
        if type(key) is not tuple or not key or type(key[0]) is not str or key[0] != "storage":
            raise pickle.UnpicklingError("reference to something other than a storage")
        self.append(self.persistent_load(key))

    def _extend(self, items: list[object]) -> None:
        if type(self.stack[-1]) is list:
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Inert):
            raise pickle.UnpicklingError("items for what is no list")

    def _update(self, items: list[object]) -> None:
        if type(self.stack[-1]) in (dict, OrderedDict):
            self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif not isinstance(self.stack[-1], Inert):
            raise pickle.UnpicklingError("items for what is no dict")

    # Python's interpreter without the operations that are not listed.
    dispatch = MappingProxyType(
        {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in OPERATIONS}
        | {pickle.REDUCE[0]: load_call, pickle.NEWOBJ[0]: load_call, pickle.BUILD[0]: load_build}
        | {pickle.APPEND[0]: load_append, pickle.APPENDS[0]: load_appends, pickle.BINPERSID[0]: load_binpersid}
        | {pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems}
    )


def load(file: IO[bytes], *, encoding: str = "utf-8") -> object:
    """The next pickle of a file, as ``Unpickler`` reads it."""
    return Unpickler(file, encoding=encoding).load()
