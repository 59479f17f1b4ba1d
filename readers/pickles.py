"""A reader of pickles that runs nothing in them: CIFAR-10's, PyTorch's and EDM's.

A pickle is a program for a stack machine; it calls functions by name. Here, the instructions that
build numbers, texts, lists, tuples and dictionaries are followed. A listed name stands for a
function of this program, or its calls are recorded; other names and instructions are refused.

Time and memory are proportional to the size of the file, up to fixed limits. Therefore containers
are neither hashed, compared nor printed, and integers from the file are not keys of a dictionary,
unless they are small: their hashes, unlike those of texts, can be chosen to collide.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from errors import printable

MAX_INSTRUCTIONS = 2_000_000  # Of a file; a tensor takes 35 in PyTorch's files, 170 in EDM's.
MAX_VALUES, MAX_DEPTH = 1_000_000, 100  # Of the result.
MAX_TEXT = 1000  # Characters of a key or name.
MAX_KEY = 2**13  # Integers that are keys are smaller. Optimizers number their parameters.
MAX_BITS = 80  # Of an integer. That with which PyTorch's older files begin has 77.
MAX_ARGUMENTS = 10

PUSHED = {  # Instructions that push their argument.
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}

Names = Mapping[str, Callable[..., Any] | None]
"""For each allowed name, such as 'numpy dtype', what is called in its place; None to record it."""


@dataclasses.dataclass(slots=True, eq=False)
class Record:
    """The call of a name, and the state that the pickle gives to the object."""

    kind: str
    arguments: tuple = ()
    state: Any = None


class Name(str):
    """A name in a pickle."""


class Reader:
    """Reads the pickles of one file, which may contain others, within common limits."""

    def __init__(self) -> None:
        self._left = MAX_INSTRUCTIONS

    def load(
        self, stream: Any, names: Names, persistent: Callable[[Any], Any] | None = None
    ) -> Any:
        """Return the value of the pickle at the position of a binary stream, and move to its end.

        The value may contain itself; see `check_tree`. Sets are lists. `persistent` returns the
        object for an identifier in the pickle, such as the data of a tensor.

        Raises an exception, of many types, if the pickle is damaged or is not allowed.
        """
        machine = _Machine(names, persistent)
        for opcode, argument, _ in pickletools.genops(stream):
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
            machine.follow(opcode.name, argument)
        return machine.stack.pop()


class _Machine:
    def __init__(self, names: Names, persistent: Callable[[Any], Any] | None) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._names, self._persistent = names, persistent

    def follow(self, name: str, argument: Any) -> None:
        """Follow an instruction that pushes or stores a value, or does nothing."""
        if name in PUSHED:
            if type(argument) is int and argument.bit_length() > MAX_BITS:
                raise ValueError(f"it has an integer of {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            self.stack.append(CONTAINERS[name]())
        elif name == "MARK":
            self._marks.append(len(self.stack))
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            index = len(self._memo) if name == "MEMOIZE" else argument
            missing = index + 1 - len(self._memo)
            if missing > 2:  # Python 3 counts from 0, and Python 2 from 1, without gaps.
                raise ValueError(f"it stores a value as number {index}")
            self._memo.extend([None] * missing)
            self._memo[index] = self.stack[-1]
        elif name not in ("PROTO", "FRAME", "STOP"):
            self._combine(name, argument)

    def _combine(self, name: str, argument: Any) -> None:
        """Follow an instruction that combines values of the stack."""
        match name:
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._pop(int(name[5:] or -1))))
            case "APPEND" | "APPENDS" | "ADDITEMS":
                values = self._pop(1 if name == "APPEND" else -1)
                self._last(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self._pop(2 if name == "SETITEM" else -1)
                self._last(dict).update(zip(map(as_key, values[::2]), values[1::2], strict=True))
            case "GLOBAL" | "STACK_GLOBAL":
                words = argument if name == "GLOBAL" else " ".join(map(as_text, self._pop(2)))
                if words not in self._names:
                    shown = printable(words[:100]).replace(" ", ".")
                    raise ValueError(f"it names {shown}, which is not loaded")
                self.stack.append(Name(words))
            case "REDUCE" | "NEWOBJ":
                self.stack.append(self._call(*self._pop(2)))
            case "BUILD":
                (state,) = self._pop(1)
                if type(self.stack[-1]) is not dict:  # The attributes of one are not read.
                    self._last(Record).state = state
            case "BINPERSID" if self._persistent:
                self.stack.append(self._persistent(*self._pop(1)))
            case _:
                raise ValueError(f"it has the instruction {name}, which is not followed")

    def _pop(self, count: int) -> list[Any]:
        """Remove and return the last `count` values, or for -1 those after the last mark."""
        start = self._marks.pop() if count < 0 else len(self.stack) - count
        if start < 0:
            raise ValueError("an instruction lacks a value")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _last(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"it changes a value that is not a {kind.__name__.lower()}")
        return self.stack[-1]

    def _call(self, name: Any, arguments: Any) -> Any:
        is_call = type(name) is Name and type(arguments) is tuple
        if not is_call or len(arguments) > MAX_ARGUMENTS:
            raise ValueError("it calls a value that is not a name, or with many arguments")
        function = self._names.get(name)
        return function(*arguments) if function else Record(name, arguments)


def as_text(value: Any) -> str:
    """Return a text of at most MAX_TEXT characters. Raise ValueError for any other value."""
    if type(value) is not str or len(value) > MAX_TEXT:
        raise ValueError(f"a name is not a text of at most {MAX_TEXT} characters")
    return value


def as_key(value: Any) -> str | int:
    """Return a key of a dictionary. Raise ValueError unless it is a short text or small number."""
    return value if type(value) is int and 0 <= value < MAX_KEY else as_text(value)


def check_tree(value: Any, size: int) -> None:
    """Raise ValueError if a value is nested deeply, or much larger than the file of `size` bytes.

    Parts that occur several times count as often, so that anything may be done with the value.
    """
    todo, count, left = [(value, 0)], 0, 2 * size + 2**20
    while todo:
        value, depth = todo.pop()
        parts: list[Any] = []
        if isinstance(value, Record):
            parts = [value.arguments, value.state]
        elif isinstance(value, dict):
            parts = [*value, *value.values()]
        elif isinstance(value, (list, tuple)):
            parts = [*value]
        count += len(parts)
        left -= len(value) if isinstance(value, (str, bytes)) else getattr(value, "nbytes", 0)
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_DEPTH} levels or {MAX_VALUES:,} values")
        if left < 0:
            raise ValueError("its values are larger than the file")
        todo.extend((part, depth + 1) for part in parts)
