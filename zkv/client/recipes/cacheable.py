"""Decides which functions a cache accepts, and names them.

A result is stored under the function's name and its arguments. So the function needs a name that
means the same in every program, its result may depend only on its arguments, and it must return
the result as a whole.
"""

from __future__ import annotations

import inspect
from functools import partial
from types import ModuleType
from typing import Final

BOUND: Final = frozenset({"self", "cls"})
"""First parameters of methods."""
IS_METHOD: Final = (
    "its result depends on its object, which is not part of the key: cache a function, or put "
    "@staticmethod above the cache"
)


def check_function(function: object, *, is_async: bool) -> None:
    """Check that the results of a function can be cached.

    Args:
        function: the decorated object.
        is_async: True = it must be a coroutine function; False = it must not.

    Raises:
        TypeError: it is not such a function.
    """
    if reason := _unfit(function, is_async):
        raise TypeError(f"a cache is for functions, not for {_described(function)}: {reason}")


def _unfit(function: object, is_async: bool) -> str:
    """Explain why a function cannot be cached; empty if it can."""
    reasons = {
        "put @staticmethod above the cache": isinstance(function, staticmethod),
        IS_METHOD: isinstance(function, (classmethod, property)) or _is_method(function),
        "it cannot be called": not callable(function),
        "its objects cannot be stored": isinstance(function, type),
        "it is a generator: return a list instead": _is_generator(function),
    }
    for reason, is_so in reasons.items():
        if is_so:
            return reason
    if _is(inspect.iscoroutinefunction, function) is is_async:
        return ""
    return (
        "AsyncClient.cache takes async functions; Client.cache takes this one"
        if is_async
        else "Client.cache takes plain functions; AsyncClient.cache takes this one"
    )


def _is_generator(function: object) -> bool:
    return _is(inspect.isgeneratorfunction, function) or _is(inspect.isasyncgenfunction, function)


def _is(kind: object, function: object) -> bool:
    """True if a function, or the ``__call__`` of an object, is of a kind."""
    call = getattr(type(function), "__call__", None)  # noqa: B004  the function, not whether
    return bool(kind(function) or kind(call))  # type: ignore[operator]


def _is_method(function: object) -> bool:
    """True if a function is defined in a class, and its first parameter is the object or class."""
    scope = getattr(function, "__qualname__", "").rpartition(".")[0]
    if not inspect.isfunction(function) or not scope or scope.endswith("<locals>"):
        return False
    return next(iter(inspect.signature(function).parameters), "") in BOUND


def _described(function: object) -> str:
    name = getattr(function, "__qualname__", "") or getattr(function, "__name__", "")
    kind = type(function).__name__
    return f"the {kind} {name}" if name else f"a {kind}"


def name_of(function: object) -> str:
    """Return the module and name of a function, the same in every program that has it.

    Raises:
        TypeError: it has no name.
    """
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    owner = getattr(function, "__self__", None)
    is_bound = owner is not None and not isinstance(owner, ModuleType)
    if is_bound or not (isinstance(module, str) and isinstance(name, str)) or "<lambda>" in name:
        kind = "partial" if isinstance(function, partial) else _described(function)
        raise TypeError(f"prefix: required for {kind}, which has no name of its own")
    return f"{module}.{name}"
