"""Reads the pickles of PyTorch files without running what they name.

A pickle is a program that may call any function and ask for any memory or time. The
standard library's unpickler builds the object, with stand-ins from a short list for
all that the pickle names: nothing is imported, and anything else is refused by its
name. `_safe_program` comes before it and refuses or replaces the instructions whose
cost would not follow from the pickle's length.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

from litevit_jax.weights.base import ITEM_SIZES, WeightsError, count, short

_CODES = {"f2": "float16", "f4": "float32", "f8": "float64", "i8": "int64"}
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


class _Inert:
    """An object that ignores the attributes which a pickle sets.

    Every object that the unpickler is handed derives from it. Without this method
    BUILD would write into `__dict__`, of frozen classes and of functions too.
    """

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Storage(_Inert):
    """A run of `numel` elements that the file keeps under `key`."""

    key: str
    dtype: str
    numel: int


@dataclasses.dataclass(frozen=True)
class Tensor(_Inert):
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Type(_Inert):
    """A type of NumPy; `name` is a key of `ITEM_SIZES`, or None for any other."""

    __slots__ = ("name",)

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.name = _CODES.get(code) if isinstance(code, str) else None

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and state[1:2] == ("<",)):
            self.name = None  # of the other byte order


class Array(_Inert):
    """An array of NumPy in C's order, whose bytes `raw` the pickle holds.

    `dtype` is None for an array of any other kind.
    """

    __slots__ = ("dtype", "raw", "shape")

    def __init__(self, *_: Any) -> None:
        self.dtype: str | None = None
        self.raw, self.shape = b"", (0,)

    def __setstate__(self, state: Any) -> None:
        _check(isinstance(state, tuple) and len(state) == 5, "an array without a shape")
        _, shape, kind, by_columns, raw = state
        if not isinstance(kind, _Type) or kind.name is None or by_columns:
            return
        fine = isinstance(shape, tuple) and len(shape) <= 16
        fine = fine and all(map(_is_size, shape)) and isinstance(raw, bytes)
        size = ITEM_SIZES[kind.name] * count(shape) if fine else 0
        if not fine or len(raw) != size:
            raise WeightsError(f"an array of shape {short(shape)} with other bytes")
        self.dtype, self.raw, self.shape = kind.name, raw, shape


class Dict(_Inert, dict):
    """A dict that hashes text, numbers below 2^60 and nothing else.

    The hash of a tuple takes as long as all that it holds, parts that it holds twice
    twice; integers that differ by multiples of 2^61 - 1 share one hash.
    """

    __slots__ = ()

    def __init__(self) -> None:
        """Takes no pairs, which would go past `__setitem__`."""

    def __setitem__(self, key: Any, value: Any) -> None:
        plain = type(key) in (str, float, bool) and key == key
        plain = plain or (type(key) is int and abs(key) < 2**60)
        _check(plain, f"a dict key of type {type(key).__name__}")
        super().__setitem__(key, value)


class Opaque(_Inert):
    """A value that is no part of weights; only the name of its class is kept."""

    __slots__ = ()

    def __new__(cls, *args: Any) -> Opaque:
        _check_number(args)
        return super().__new__(cls)

    def add(self, _: Any) -> None:
        """Leaves out an element of a set."""


@dataclasses.dataclass(frozen=True)
class _Function(_Inert):
    """Stands for a function that a pickle may call."""

    call: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        _check_number(args)
        return self.call(*args)


@dataclasses.dataclass(frozen=True)
class _StorageType(_Inert):
    """Stands for a class of storages, which a pickle only names."""

    dtype: str


def _check(condition: Any, problem: str) -> None:
    if not condition:
        raise WeightsError(problem)


def _check_number(args: tuple[Any, ...]) -> None:
    """Refuses a call whose arguments take long to copy: it could be repeated."""
    _check(len(args) <= 8, f"a call with {len(args)} arguments")


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


# Values beside the weights: numbers of NumPy, options of the command line.
_OPAQUE = (
    "argparse.Namespace",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.ndarray",
    "torch.device",
)
_STAND_INS: dict[str, Any] = {
    "torch._utils._rebuild_tensor": _Function(_tensor),
    "torch._utils._rebuild_tensor_v2": _Function(_tensor),
    "torch._utils._rebuild_parameter": _Function(_parameter),
    "torch.Size": _Function(_size),
    "numpy._core.multiarray._reconstruct": _Function(Array),
    "numpy.core.multiarray._reconstruct": _Function(Array),
    "numpy.dtype": _Function(_Type),
    "litevit_jax.dict": Dict,  # see `_REPLACED`
    "litevit_jax.set": type("set", (Opaque,), {"__slots__": ()}),
    **{name: type(name, (Opaque,), {"__slots__": ()}) for name in _OPAQUE},
    **{f"torch.{name}": _StorageType(dtype) for name, dtype in STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Builds the object of a safe program from stand-ins."""

    def __init__(self, program: bytes) -> None:
        super().__init__(io.BytesIO(program), encoding="latin-1")
        self._left = len(program)  # elements that may be copied into dicts and bytes

    def find_class(self, module_name: str, global_name: str) -> Any:
        name = f"{module_name}.{global_name}"
        if name == "collections.OrderedDict":
            return _Function(self._ordered_dict)
        if name == "_codecs.encode":  # bytes, as pickles of protocol 2 hold them
            return _Function(self._encode)
        _check(
            name in _STAND_INS,
            f"it names {name:.80}, which is no part of a tensor; nothing of the file "
            "was run. If you trust where it comes from, load it in PyTorch and save "
            "the state dict alone",
        )
        return _STAND_INS[name]

    def persistent_load(self, pid: Any) -> Storage:
        """The storage of a persistent id, as both formats of PyTorch write it."""
        known = isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage"
        _check(known, "a reference to something that is no storage")
        kind, key, _, numel, *view = pid[1:]
        _check(isinstance(kind, _StorageType), f"a storage of type {short(kind)}")
        _check(isinstance(key, str) and _is_size(numel), "a storage without key, size")
        before = "a format before PyTorch 0.4"
        _check(not any(view), f"a view of storage {short(key)} ({before})")
        return Storage(key, kind.dtype, numel)

    def _encode(self, text: Any = "", encoding: Any = "") -> bytes:
        _check(isinstance(text, str) and encoding == "latin1", "bytes of no text")
        self._left -= len(text)
        _check(self._left >= 0, "it copies one text again and again")
        return text.encode("latin-1")

    def _ordered_dict(self, items: Any = ()) -> Dict:
        _check(isinstance(items, list | tuple), "an ordered dict of no list")
        self._left -= len(items)
        _check(self._left >= 0, "it copies one list again and again")
        result = Dict()
        for pair in items:
            _check(
                isinstance(pair, list | tuple) and len(pair) == 2, "a pair of not two"
            )
            result[pair[0]] = pair[1]
        return result


_ALLOWED = {
    *("PROTO", "STOP", "MARK", "POP", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "INT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "UNICODE", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINBYTES", "BINBYTES"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS"),
    *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"),
}
# Instruction -> its bytes, and what stands in their place. Python's dicts and sets
# hash whatever they are given. A frame only says how much to read at once; where one
# ends inside an instruction, the unpickler would go on at another than `pickletools`.
_REPLACED = {
    "EMPTY_DICT": (1, b"clitevit_jax\ndict\n)R"),
    "EMPTY_SET": (1, b"clitevit_jax\nset\n)R"),
    "FRAME": (9, b""),
}


def _safe_program(stream: Any) -> bytes:
    """The stream's next pickle, in instructions that cost no more than their length.

    Raises:
      WeightsError: it has an instruction that is not in `_ALLOWED`.
    """
    start, replaced = stream.tell(), []
    for step, (opcode, arg, position) in enumerate(pickletools.genops(stream)):
        if opcode.name in _REPLACED:
            replaced.append((position - start, *_REPLACED[opcode.name]))
            continue
        _check(opcode.name in _ALLOWED, f"the pickle instruction {opcode.name}")
        if "PUT" in opcode.name:  # the memo is an array as long as its largest index
            _check(int(arg or 0) <= step, f"a memo of {short(arg)} entries")
    end = stream.tell()
    stream.seek(start)
    program, parts, begin = stream.read(end - start), [], 0
    for position, size, new in replaced:
        parts += [program[begin:position], new]
        begin = position + size
    return b"".join([*parts, program[begin:]])


# The errors of `pickletools`, the unpickler or a value of the wrong type.
_MALFORMED = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def load(stream: Any) -> Any:
    """The object that a pickle describes, of dicts, lists, numbers and `Tensor`s.

    Args:
      stream: a file-like object of bounded size, at the pickle's first byte; it is
        left behind the last.

    Raises:
      WeightsError: the pickle is damaged, or has more in it than tensors.
    """
    try:
        return _Unpickler(_safe_program(stream)).load()
    except WeightsError:
        raise
    except _MALFORMED as error:
        raise WeightsError(f"its pickle is damaged ({error!s:.120})") from None
