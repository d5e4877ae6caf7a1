"""Reads the pickles of PyTorch files without running them.

A pickle is a program that may call any function. This module never calls or imports
what a file names: it reads the instructions one by one (`pickletools`), knows those
that build dicts, lists and numbers, and a short table of names that stand for
tensors. Anything else is refused by its name.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

from litevit_jax.weights.base import WeightsError, count, short

# PyTorch's storage classes -> NumPy's name of the type.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of `numel` elements that the file keeps under `key`."""

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Opaque:
    """A value that no weights are made of; only the name of its type is kept."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name in the pickle that is on the list; nothing is imported for it."""

    name: str


class _Mark:
    """The instruction MARK on the stack."""


def _check(condition: Any, problem: str) -> None:
    if not condition:
        raise WeightsError(problem)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor whose every element lies inside its storage.

    Views that repeat elements (stride 0) could ask for any amount of memory, so the
    tensor may have no more elements than the storage.
    """
    _check(isinstance(storage, Storage), "a tensor without a storage")
    for sizes in (shape, stride):
        fine = isinstance(sizes, tuple) and all(map(_is_size, sizes))
        _check(fine and len(sizes) <= 16, f"a tensor with sizes {short(sizes)}")
    _check(len(shape) == len(stride), f"a tensor of shape {shape} and stride {stride}")
    _check(_is_size(offset), f"a tensor with offset {short(offset)}")
    size = count(shape)
    reach = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    inside = size <= storage.numel and offset + reach < storage.numel
    if size:
        _check(
            inside,
            f"a tensor of shape {shape}, stride {stride} and offset {offset} reaches "
            f"outside its storage {short(storage.key)} of {storage.numel} elements",
        )
    return Tensor(storage, offset, shape, stride)


def _parameter(tensor: Any, *_: Any) -> Tensor:
    _check(isinstance(tensor, Tensor), "a parameter that is no tensor")
    return tensor


def _size(values: Any = ()) -> tuple[Any, ...]:
    short_enough = isinstance(values, list | tuple) and len(values) <= 16
    _check(short_enough, f"a size of {short(values)}")
    return tuple(values)


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _check(isinstance(items, list | tuple), "an ordered dict of no list")
    for pair in items:
        _check(isinstance(pair, list | tuple) and len(pair) == 2, "a pair of no two")
        _store(made, *pair)
    return made


def _opaque(name: str) -> Callable[..., Opaque]:
    return lambda *_: Opaque(name)


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
}
# Values beside the weights: numbers of NumPy, options of the command line.
_OPAQUE = (
    "_codecs.encode",
    "argparse.Namespace",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.device",
)
_CALLS |= {name: _opaque(name) for name in _OPAQUE}
_TYPES = {f"torch.{name}": dtype for name, dtype in STORAGES.items()}


def _store(target: dict[Any, Any], key: Any, value: Any) -> None:
    plain = type(key) in (str, int, float, bool) and key == key
    _check(plain, f"a dict key of type {type(key).__name__}")
    target[key] = value


def _storage(saved: Any) -> Storage:
    """The storage of a persistent id, as both formats of PyTorch write it."""
    known = isinstance(saved, tuple) and len(saved) >= 5 and saved[0] == "storage"
    _check(known, "a reference to something that is no storage")
    kind, key, _, numel, *view = saved[1:]
    name = kind.name if isinstance(kind, _Global) else short(kind)
    _check(name in _TYPES, f"a storage of type {name}")
    _check(isinstance(key, str) and _is_size(numel), "a storage without key or size")
    before = "a format before PyTorch 0.4"
    _check(not any(view), f"a view of storage {short(key)} ({before})")
    return Storage(key, _TYPES[name], numel)


class _Machine:
    """The stack and memo of a pickle that is being read."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.left = size  # elements that calls may copy, as many as there are bytes

    def step(self, name: str, arg: Any) -> None:
        """Follows one instruction, named as in `pickletools`."""
        if name in _LITERALS:
            self.stack.append(arg)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _STEPS:
            _STEPS[name](self, arg)
        elif name not in _IGNORED:
            raise WeightsError(f"the pickle instruction {name}")

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last MARK."""
        place = len(self.stack) - 1
        while not isinstance(self.stack[place], _Mark):
            place -= 1
            _check(place >= 0, "an instruction without its MARK")
        found = self.stack[place + 1 :]
        del self.stack[place:]
        return found

    def make_tuple(self, size: int) -> None:
        parts = [self.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(parts)))

    def make_dict(self) -> None:
        pairs = self.pop_mark()
        self.stack.append({})
        self.set_items(pairs)

    def put(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        _check(index in self.memo, "a reference to nothing")
        self.stack.append(self.memo[index])

    def name(self, arg: str | None) -> None:
        """GLOBAL ('module name') and STACK_GLOBAL (both on the stack)."""
        pair = arg.split(" ", 1) if arg else [self.pop(), self.pop()][::-1]
        _check(all(isinstance(part, str) for part in pair), "a name that is no text")
        name = ".".join(pair)
        if name not in _CALLS and name not in _TYPES:
            raise WeightsError(
                f"it names {name:.80}, which is no part of a tensor; nothing of the "
                "file was run. If you trust where it comes from, load it in PyTorch "
                "and save the state dict alone"
            )
        self.stack.append(_Global(name))

    def call(self, _: Any) -> None:
        """REDUCE and NEWOBJ."""
        args, function = self.pop(), self.pop()
        known = isinstance(function, _Global) and function.name in _CALLS
        _check(known and isinstance(args, tuple), "a call of something unnamed")
        self.left -= sum(len(x) for x in args if isinstance(x, list | tuple | dict))
        _check(self.left >= 0, "it copies one list again and again")
        self.stack.append(_CALLS[function.name](*args))

    def build(self, _: Any) -> None:
        """BUILD: the attributes of an object, none of which are weights."""
        self.pop()
        known = isinstance(self.stack[-1], dict | Opaque | Tensor)
        _check(known, f"attributes of a {type(self.stack[-1]).__name__}")

    def set_items(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        _check(isinstance(target, dict) and len(pairs) % 2 == 0, "items of no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            _store(target, key, value)

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        _check(isinstance(target, list), "elements of no list")
        target.extend(values)

    def pop_last(self, size: int) -> list[Any]:
        return [self.pop() for _ in range(size)][::-1]


_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "INT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES"),
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Opaque("set"),
    "MARK": _Mark,
}
# How `pickletools`, an empty stack or a value of the wrong type say it.
_MALFORMED = (ValueError, IndexError, TypeError, OverflowError, RecursionError)
_IGNORED = ("PROTO", "FRAME", "STOP")
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "TUPLE": lambda m, _: m.stack.append(tuple(m.pop_mark())),
    "LIST": lambda m, _: m.stack.append(m.pop_mark()),
    "TUPLE1": lambda m, _: m.make_tuple(1),
    "TUPLE2": lambda m, _: m.make_tuple(2),
    "TUPLE3": lambda m, _: m.make_tuple(3),
    "DICT": lambda m, _: m.make_dict(),
    "PUT": _Machine.put,
    "GET": _Machine.get,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": lambda m, _: m.stack.append(_storage(m.pop())),
    "SETITEM": lambda m, _: m.set_items(m.pop_last(2)),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    "APPEND": lambda m, _: m.append(m.pop_last(1)),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "ADDITEMS": lambda m, _: m.pop_mark(),
    "POP": lambda m, _: m.pop(),
}


def _size_of(stream: Any) -> int:
    """Bytes from here to the stream's end."""
    here = stream.tell()
    stream.seek(0, 2)
    end = stream.tell()
    stream.seek(here)
    return end - here


def load(stream: Any) -> Any:
    """The object that a pickle describes, of dicts, lists, numbers and `Tensor`s.

    Args:
      stream: a file-like object of bounded size, at the pickle's first byte; it is
        left behind the last.

    Raises:
      WeightsError: the pickle is damaged, or has more in it than tensors.
    """
    machine = _Machine(_size_of(stream))
    try:
        for opcode, arg, _ in pickletools.genops(stream):
            machine.step(opcode.name, arg)
        (result,) = machine.stack
    except WeightsError:
        raise
    except (*_MALFORMED, MemoryError) as error:
        raise WeightsError(f"its pickle is damaged ({error!s:.120})") from None
    return result
