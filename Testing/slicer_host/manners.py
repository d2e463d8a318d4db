"""PythonQt manners on PySide6 classes: properties without a call, connect by signature, surplus arguments dropped."""

from __future__ import annotations

import ctypes
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

QT_MODULES = (QtCore, QtGui, QtWidgets, QtUiTools)

KEEP_AS_METHOD = frozenset({"sizeHint", "minimumSizeHint", "hasHeightForWidth", "parent", "children"})
"""Qt properties whose name is also a method that Qt itself, or this host, has to call."""

_original_getattribute = QtCore.QObject.__getattribute__
_connections: dict[tuple[int, str, Callable[..., Any]], tuple[Any, Callable[..., Any]]] = {}
_installed = False


def split_signature(signature: str) -> tuple[str, list[str]]:
    """`clicked(bool)` gives ("clicked", ["bool"]); the digit that SIGNAL() puts in front is dropped."""
    name, _, rest = signature.lstrip("0123456789").partition("(")
    inside = rest.rstrip(")").strip()
    return name, [part.strip() for part in inside.split(",")] if inside else []


def accepted_arguments(function: Callable[..., Any], offered: int) -> int:
    """How many of `offered` arguments a Python slot takes: PythonQt drops the rest."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return offered
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return offered
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return min(offered, sum(p.kind in by_position for p in parameters))


def connect(sender: QtCore.QObject, signal: str, *target: Any) -> bool:
    """`connect("sig(args)", callable)` or `connect("sig(args)", receiver, "slot(args)")`, as PythonQt spells them.

    An unknown signal raises AttributeError, so that a typing error cannot pass as a silent no-op.
    """
    slot = target[0] if len(target) == 1 else getattr(target[0], split_signature(target[1])[0])
    name, arguments = split_signature(signal)
    bound = _original_getattribute(sender, name)
    if arguments:
        try:
            bound = bound[",".join(arguments)]
        except (KeyError, IndexError, TypeError):
            pass  # the signal has one overload only, or is a Signal(object) standing for a MRML type
    adapter = _fixed_arity(slot, len(arguments), accepted_arguments(slot, len(arguments)))
    bound.connect(adapter)
    _connections[(id(sender), signal, slot)] = (bound, adapter)
    return True


def disconnect(sender: QtCore.QObject, signal: str, slot: Callable[..., Any]) -> bool:
    """Undoes one `connect`; False when there was none."""
    entry = _connections.pop((id(sender), signal, slot), None)
    if entry is None:
        return False
    bound, adapter = entry
    bound.disconnect(adapter)
    return True


def _fixed_arity(slot: Callable[..., Any], offered: int, taken: int) -> Callable[..., Any]:
    """PySide6 picks a signal's overload by the arity of the callable, hence one adapter for each arity."""

    def call(*arguments: Any) -> Any:
        return slot(*arguments[:taken])

    adapters: tuple[Callable[..., Any], ...] = (
        lambda: call(),
        lambda a: call(a),
        lambda a, b: call(a, b),
        lambda a, b, c: call(a, b, c),
        lambda a, b, c, d: call(a, b, c, d),
    )
    return adapters[offered]


def _getattribute(self: QtCore.QObject, name: str) -> Any:
    # Setting QObject.connect has no effect: PySide6 resolves these two names by itself.
    if name == "connect":
        return types.MethodType(connect, self)
    if name == "disconnect":
        return types.MethodType(disconnect, self)
    return _original_getattribute(self, name)


def _property_of(name: str) -> property:
    return property(lambda self: self.property(name), lambda self, value: self.setProperty(name, value))


def _expose(qt_class: Any) -> None:
    meta = qt_class.staticMetaObject
    for index in range(meta.propertyOffset(), meta.propertyCount()):
        name = meta.property(index).name()
        if name not in KEEP_AS_METHOD:
            setattr(qt_class, name, _property_of(name))


def _expose_below(qt_class: type, seen: set[type]) -> None:
    for subclass in qt_class.__subclasses__():
        if subclass not in seen and subclass.__module__.startswith("PySide6"):
            seen.add(subclass)
            _expose(subclass)
            _expose_below(subclass, seen)


def keep_singletons_alive() -> None:
    """Gives None, True, False and their like so many references that they can never run out.

    PySide6 6.12 returns them without taking a reference, which is right only where they are immortal (Python 3.12 and newer).
    On Python 3.11 each `update()` or `emit()` uses one up, and a long test run would end in "deallocating None".
    """
    if sys.version_info >= (3, 12):
        return
    for singleton in (None, True, False, NotImplemented, Ellipsis):
        ctypes.c_ssize_t.from_address(id(singleton)).value += 1 << 40


def install() -> None:
    """Patches every PySide6 class, once. Host code that runs afterwards must use property style too."""
    global _installed
    if _installed:
        return
    _installed = True
    keep_singletons_alive()
    for module in QT_MODULES:
        for name in dir(module):  # PySide6 makes its classes lazily: touch each before patching
            getattr(module, name, None)
    qobject: Any = QtCore.QObject
    _expose(qobject)
    _expose_below(qobject, set())
    qobject.name = _property_of("objectName")
    qobject.className = lambda self: self.metaObject().className()
    qobject.delete = lambda self: shiboken6.delete(self)
    qobject.__getattribute__ = _getattribute
