"""Thin stand-ins for TensorRT's Python module, one for each version that record_trt_surface.py recorded.

No logic lives here. A name that the version lacks is an AttributeError, arguments that do not fit a recorded signature
are a TypeError, what is called is logged, and what comes back is canned: an object of the recorded return type, True,
0, "", or what the test gave. So a test that builds with `surface("8.5.3")` shows which names GradSeg touches on 8.5.3
and that it has them all; it shows nothing of what TensorRT does with them.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

FOLDER = Path(__file__).resolve().parent / "trt_surface"
VERSIONS = ("8.5.3", "8.6.1", "10.3.0", "10.16.1", "11.4.0", "rtx-1.7.1")
INTERFACES = ("ILogger", "IProgressMonitor")  # implemented by GradSeg's classes, which may have attributes of their own
SIMPLE: Mapping[str, Any] = {"bool": True, "int": 0, "str": "", "float": 0.0, "bytes": b"", "tuple": (), "list": []}


class Surface(types.ModuleType):
    """A module made from a recording.

    log: ("Class.method", positional and keyword arguments as a tuple) and ("Class.property=", (value,)), in order.
    returns: canned answers by "Class.method" or "Class.property"; a callable is called with the arguments, an exception
    is raised.
    """

    def __init__(self, recording: Dict[str, Any], returns: Dict[str, Any]) -> None:
        super().__init__(recording["module"])
        self.__version__ = recording["version"]
        self.log: List[Tuple[str, Tuple[Any, ...]]] = []
        self.returns, self.recording = returns, recording
        for name, values in recording["enums"].items():
            if "." not in name:
                setattr(self, name, _enum(name, values))
        for name, members in recording["classes"].items():
            setattr(self, name, _class(self, name, members))
        for name, signatures in recording["functions"].items():
            setattr(self, name, _function(self, name, signatures))

    def __getattr__(self, name: str) -> Any:
        known = name in self.__dict__.get("recording", {}).get("names", ())
        reason = "has it, but its members are not recorded: see record_trt_surface.py" if known else "does not have it"
        raise AttributeError(f"{name}: {self.__name__} {self.__dict__.get('__version__')} {reason}")

    def called(self, name: str) -> List[Tuple[Any, ...]]:
        """The arguments of each call of "Class.method", or of each setting of "Class.property="."""
        return [arguments for called, arguments in self.log if called == name]

    def answer(self, name: str, kind: str, arguments: Tuple[Any, ...] = ()) -> Any:
        """What `returns` says, or something of the type recorded."""
        if name in self.returns:
            given = self.returns[name]
            if isinstance(given, BaseException):
                raise given
            return given(*arguments) if callable(given) else given
        if kind in self.recording["classes"]:
            return make(self, kind)
        if kind in self.recording["enums"]:
            return next(iter(getattr(self, kind)))
        return SIMPLE.get(kind)


def surface(version: str, returns: Optional[Mapping[str, Any]] = None) -> Any:
    """The stand-in for one of VERSIONS. returns: canned answers, which may be added to later; see `Surface`."""
    recording = json.loads((FOLDER / f"{version}.json").read_text("utf-8"))
    return Surface(recording, dict(returns or {}))


def make(trt: Surface, kind: str, /, **values: Any) -> Any:
    """An object of a recorded class, made without its constructor; values: of its properties."""
    made = object.__new__(getattr(trt, kind))
    made.__dict__["_values"] = values
    return made


def _enum(name: str, values: Dict[str, int]) -> Any:
    class Member(enum.Enum):
        def __int__(self) -> int:
            return int(self.value)

    return Member(name, values)


def _class(trt: Surface, name: str, members: Dict[str, Any]) -> Any:
    def strict(self: Any, attribute: str, value: Any) -> None:
        if type(self) is getattr(trt, name) or name not in INTERFACES:
            descriptor = getattr(type(self), attribute, None)
            if not isinstance(descriptor, property) or descriptor.fset is None:
                raise AttributeError(f"{name}.{attribute} cannot be set in {trt.__name__} {trt.__version__}")
        object.__setattr__(self, attribute, value)

    body: Dict[str, Any] = {"__setattr__": strict, "__init__": _function(trt, name, members["__init__"], True)}
    if name == "IHostMemory":
        body["__bytes__"] = lambda self: trt.answer("IHostMemory.bytes", "bytes")
    constants = {}
    for member, what in members.items():
        if isinstance(what, list) and member != "__init__":
            body[member] = _function(trt, f"{name}.{member}", what, True)
        elif isinstance(what, str) and what.startswith("= "):
            constants[member] = what[2:].split(".")[-1]
        elif isinstance(what, str):
            body[member] = _property(trt, name, member, what == "property")
    made = type(name, (), body)
    if constants:  # ILogger and Logger carry their severities
        made.Severity = _enum("Severity", trt.recording["enums"]["ILogger.Severity"])  # type: ignore[attr-defined]
        for member, value in constants.items():
            setattr(made, member, made.Severity[value])  # type: ignore[attr-defined]
    return made


def _property(trt: Surface, owner: str, name: str, writable: bool) -> property:
    def read(self: Any) -> Any:
        values = self.__dict__.get("_values", {})
        return values[name] if name in values else trt.answer(f"{owner}.{name}", "")

    def write(self: Any, value: Any) -> None:
        trt.log.append((f"{owner}.{name}=", (value,)))
        self.__dict__.setdefault("_values", {})[name] = value

    return property(read, write if writable else None)


def _function(trt: Surface, name: str, recorded: List[str], method: bool = False) -> Any:
    overloads = [_signature(text) for text in recorded]

    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*args[1:], *kwargs.values()) if method else (*args, *kwargs.values())
        fits = [kind for parameters, kind in overloads if _fits(parameters, args, kwargs)]
        if overloads and not fits:
            raise TypeError(f"{name}{args}{kwargs or ''}: {trt.__version__} takes {' or '.join(recorded)}")
        trt.log.append((name, given))
        if name in trt.recording["classes"]:  # a constructor
            args[0].__dict__["_values"] = {}
            trt.answer(name, "None", given)
            return None
        return trt.answer(name, fits[0] if fits else "", given)

    return call


def _fits(parameters: Optional[inspect.Signature], args: Any, kwargs: Any) -> bool:
    try:
        if parameters is not None:
            parameters.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _signature(text: str) -> Tuple[Optional[inspect.Signature], str]:
    """(parameters, return type) of "(self: Builder, flags: int = 0) -> INetworkDefinition"."""
    depth, parts, start = 0, [], 1
    for index, letter in enumerate(text):
        depth += letter in "([{<"
        depth -= letter in ")]}" or (letter == ">" and text[index - 1] != "-")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(text[start:index].strip())
            start = index + 1
            if depth == 0:
                break
    returned = text[start:].replace("->", "").strip()
    parameters: List[inspect.Parameter] = []
    for position, part in enumerate(filter(None, parts)):
        name = re.match(r"\w*", part.lstrip("*")).group() or f"arg{position}"  # type: ignore[union-attr]
        kind = inspect.Parameter.VAR_POSITIONAL if part.startswith("*") else inspect.Parameter.POSITIONAL_OR_KEYWORD
        if part.startswith("**"):
            kind = inspect.Parameter.VAR_KEYWORD
        # pybind11 allows what Python does not: a parameter without a default after one that has it
        optional = " = " in part or any(before.default is None for before in parameters)
        default = None if optional else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters), returned
