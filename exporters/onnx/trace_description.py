"""Objects and the code that they run, as one hash that is the same in every process.

An object is described by its type and all that it holds; a function by its bytecode, its defaults, what it closes over and the
globals that it names, as they are at this moment; a class by its bases and all that it defines. Code of the libraries and of
Python itself is described by its name alone: whoever compares hashes must compare the libraries' versions too.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnxscript
import torch
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

LIBRARIES = ("torch", "onnx", "onnx-ir", "onnxscript", "diffusers", "transformers", "numpy", "sympy")
"""Distributions whose code is known by their versions."""
_KNOWN = {name.replace("-", "_") for name in LIBRARIES} | sys.stdlib_module_names
_PLAIN = {type(None), bool, int, float, complex, str, bytes, type(...)}
# Types of objects whose representation says all that there is to say.
_SHOWN = (torch.dtype, torch.device, np.dtype, OpOverload, OpOverloadPacket, CustomOpDef, onnxscript.values.Opset)
_WRAPPERS = (staticmethod, classmethod, types.MethodType)
# Of a class: what says nothing of what it does, or holds what its methods hold too.
_UNSAID = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__dataclass_fields__", "__dataclass_params__"}


class UnkeyableError(Exception):
    """An object that may matter and that has no description."""


class Description:
    """A hash of objects, fed one after another; an object that comes again is a reference to its first place."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._places: dict[int, tuple[int, Any]] = {}  # by id, which is an object's own only while it lives

    def add(self, thing: Any) -> None:
        """Describe an object and all that it leads to.

        Raises:
            UnkeyableError: there is something in it that has no description.
        """
        if type(thing) in _PLAIN:
            self._say(f"{type(thing).__name__} {thing!r}")
        elif id(thing) in self._places:
            self._say(f"place {self._places[id(thing)][0]}")
        else:
            if not isinstance(thing, tuple):  # whether equal tuples of two functions are one depends on who compiled them
                self._places[id(thing)] = (len(self._places), thing)
            self._say(f"{type(thing).__module__}.{type(thing).__qualname__} of")
            for part in _parts(thing):
                self.add(part)
            self._say("end")

    def digest(self) -> str:
        """SHA-256 in hexadecimal."""
        return self._hash.hexdigest()

    def _say(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self._hash.update(len(encoded).to_bytes(8, "little") + encoded)


def _parts(thing: Any) -> Iterable[Any]:  # noqa: PLR0911  (a return for each kind of object)
    """What an object is made of; together with its type, that is all that there is to know of it."""
    if isinstance(thing, type | types.BuiltinFunctionType | types.ModuleType) and _is_known(thing):
        return (getattr(thing, "__module__", None), getattr(thing, "__qualname__", thing.__name__))
    if isinstance(thing, types.FunctionType) and _is_known(thing):  # its line tells functions without a name apart
        return (thing.__module__, thing.__qualname__, thing.__code__.co_firstlineno, thing.__closure__)
    if isinstance(thing, types.FunctionType):
        return _function(thing)
    if isinstance(thing, type):
        return _class(thing)
    if isinstance(thing, types.CodeType):
        names = (thing.co_names, thing.co_varnames, thing.co_freevars, thing.co_cellvars)
        counts = (thing.co_flags, thing.co_argcount, thing.co_posonlyargcount, thing.co_kwonlyargcount)
        return (thing.co_code, thing.co_consts, thing.co_exceptiontable, *counts, *names)
    if isinstance(thing, Mapping):
        return [part for pair in thing.items() for part in pair]
    if isinstance(thing, list | tuple):
        return thing
    if isinstance(thing, set | frozenset) and all(type(item) in _PLAIN for item in thing):
        return sorted(thing, key=repr)
    return _instance(thing)


def _instance(thing: Any) -> Iterable[Any]:  # noqa: PLR0911  (a return for each kind of object)
    if isinstance(thing, torch.Tensor):
        return (tuple(thing.shape), thing.dtype, thing.requires_grad, None if thing.is_meta else thing.tolist())
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return (thing.shape, thing.dtype, thing.tobytes())
    if isinstance(thing, types.CellType):
        return _cell(thing)
    if isinstance(thing, _SHOWN):
        return (repr(thing),)
    if isinstance(thing, re.Pattern):
        return (thing.pattern, thing.flags)
    if isinstance(thing, property):
        return (thing.fget, thing.fset, thing.fdel)
    if isinstance(thing, _WRAPPERS):
        return (thing.__func__, getattr(thing, "__self__", None))
    if isinstance(thing, functools.partial):
        return (thing.func, thing.args, thing.keywords)
    if isinstance(thing, torch.nn.Module) or (hasattr(thing, "__dict__") and not _is_known(type(thing))):
        return (type(thing), vars(thing))
    raise UnkeyableError(type(thing))


def _is_known(code: Any) -> bool:
    """Whether its name says what it does, given the libraries' versions."""
    module = code.__name__ if isinstance(code, types.ModuleType) else code.__module__
    return module is not None and module.partition(".")[0] in _KNOWN


def _function(function: types.FunctionType) -> Iterable[Any]:
    named = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return (function.__code__, function.__defaults__, function.__kwdefaults__, function.__closure__, named)


def _cell(cell: types.CellType) -> Iterable[Any]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # a name that is not bound yet
        return ()


def _names(code: types.CodeType) -> list[str]:
    """Every name that a function's code looks up, those of functions within it included."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return [*dict.fromkeys((*code.co_names, *inner))]


def _class(kind: type) -> Iterable[Any]:
    return (kind.__qualname__, kind.__bases__, {name: value for name, value in vars(kind).items() if name not in _UNSAID})
