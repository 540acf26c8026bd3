"""A pickle read as data: its opcodes are followed, but no name is imported and nothing is called.

(bytes, the names it may use) -> plain values, in which an object or a call is a `Made`: what it would be, of which arguments, with which
state. `pickle.load` runs what the bytes say; this only writes it down, and refuses every name and opcode that is not expected. Source: the opcode
descriptions of Python's pickletools.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triplane.errors import Corrupt, Refused

_MARK = object()
PERSISTENT = "persistent id"


@dataclass(frozen=True)
class Name:
    """A global that the pickle names, as "module name"; not imported."""

    text: str


@dataclass(eq=False)
class Made:
    """An object or the result of a call; a key of a dict by identity."""

    what: Any
    arguments: Any
    state: Any = None


def read(data: bytes, allowed: frozenset[str], where: str) -> Any:
    """The value. `allowed`: names as "module name". Raises Refused for another name or opcode, Corrupt for what is no pickle."""
    machine = _Machine(allowed, where)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = machine.stack
                return value
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{where} is not a pickle of the kind expected ({error}): restore it from a copy") from error
    raise Corrupt(f"{where} ends before its pickle does: restore it from a copy")


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, allowed: frozenset[str], where: str) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._allowed, self._where = allowed, where

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise Refused(
                f"{self._where} has the opcode {name}, which what is expected there does not need: it is not read"
            )

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def name(self, text: str) -> None:
        if text not in self._allowed:
            raise Refused(f"{self._where} names {text.replace(' ', '.')}, which does not belong there: it is not read")
        self.stack.append(Name(text))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(f"{module} {name}")

    def make(self) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        self.stack.append(Made(what, arguments))

    def build(self) -> None:
        state = self.stack.pop()
        self.stack[-1].state = state

    def take(self, count: int) -> None:
        taken = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(taken)

    def set_items(self, pairs: list[Any]) -> None:
        self.stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def append_one(self) -> None:
        value = self.stack.pop()
        self.stack[-1].append(value)


_VALUES = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES".split()
)
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "MARK": lambda m, a: m.stack.append(_MARK),
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "TUPLE1": lambda m, a: m.take(1),
    "TUPLE2": lambda m, a: m.take(2),
    "TUPLE3": lambda m, a: m.take(3),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.since_mark())),
    "APPEND": lambda m, a: m.append_one(),
    "APPENDS": lambda m, a: m.stack[-1].extend(items) if (items := m.since_mark()) else None,
    "SETITEM": lambda m, a: m.set_item(),
    "SETITEMS": lambda m, a: m.set_items(m.since_mark()),
    "MEMOIZE": lambda m, a: m.memo.update({len(m.memo): m.stack[-1]}),
    "BINPUT": lambda m, a: m.memo.update({a: m.stack[-1]}),
    "LONG_BINPUT": lambda m, a: m.memo.update({a: m.stack[-1]}),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "GLOBAL": lambda m, a: m.name(a),
    "STACK_GLOBAL": lambda m, a: m.stack_name(),
    "REDUCE": lambda m, a: m.make(),
    "NEWOBJ": lambda m, a: m.make(),
    "BUILD": lambda m, a: m.build(),
    "BINPERSID": lambda m, a: m.stack.append(Made(Name(PERSISTENT), m.stack.pop())),
}
