"""Parses a compiled program's text for memory traffic, collectives and aliasing.

It follows instructions from the entry into loops (times their trips) and calls.
Branches of a conditional run only at certain steps and are counted separately.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

# Bits of element types; other types (tokens, opaque) hold no data.
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_BITS |= {f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)}
_BITS |= {f"f{bits}": bits for bits in (16, 32, 64)}

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_ELSEWHERE = re.compile(r"S\([1-9]\)")  # a layout in another memory
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# In the type of a matrix product's result: scratch space, of which it uses little.
_WORKSPACE = re.compile(r"s8\[\d+\]\{0\}")
# These move no data, or their operands or callees count it.
_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "tuple",
    "while",
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = type opcode(operands), attributes`."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind in one step, as one device sees them.

    Attributes:
      count: instructions run.
      bytes: size of the whole arrays that are reduced, gathered or sent.
      wire_bytes: bytes that a device sends if each collective runs as a ring.
    """

    count: int = 0
    bytes: int = 0
    wire_bytes: float = 0.0


class Module:
    """A compiled module, parsed."""

    def __init__(self, text: str, *, trips: int = 1):
        """Parses `text`; loops of unknown length run `trips` times."""
        self._trips = trips
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        current: list[Instruction] = []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self._computations.setdefault(header[2], [])
                self._entry = header[2] if header[1] else self._entry
            elif instruction := _INSTRUCTION.match(line):
                current.append(_instruction(*instruction.groups()))
        self._types = {
            i.name: i.type for body in self._computations.values() for i in body
        }

    def collectives(self, *, sometimes: bool = False) -> dict[str, Traffic]:
        """Sums traffic by kind of collective: of every step, or only of branches."""
        by_kind: dict[str, Traffic] = collections.defaultdict(Traffic)
        for instruction, times, branch in self._walk(self._entry, fused=True):
            kind = instruction.opcode.removesuffix("-start")
            if kind not in COLLECTIVES or branch != sometimes:
                continue
            size, payload = _group(instruction), self._payload(kind, instruction)
            if size == 1:
                continue
            traffic = by_kind[kind]
            traffic.count += times
            traffic.bytes += times * payload
            traffic.wire_bytes += times * payload * _hops(kind, size)
        return dict(by_kind)

    def memory_traffic(self) -> int:
        """Bytes read and written in main memory at every step, with layout padding.

        Counts operands and results of instructions outside fusions, except those in a
        faster memory.
        """
        total = 0
        for instruction, times, branch in self._walk(self._entry, fused=False):
            opcode = instruction.opcode
            if branch or opcode in _FREE or opcode.endswith(("-done", "-update")):
                continue
            operands = dict.fromkeys(instruction.operands)  # each is read once
            read = [self._types.get(name, "") for name in operands]
            written = instruction.type
            if opcode == "copy-start":  # (target, source, ...)
                written = next(_ARRAY.finditer(written))[0]
            elif opcode == "slice-start":  # ((source), target, ...): a part is read
                written = list(_ARRAY.finditer(written))[1][0]
                read = [_ELSEWHERE.sub("", written)] if _padded(read[0]) else []
            if "__cublas" in instruction.attributes:
                written = _WORKSPACE.sub("", written)
            total += times * (_padded(written) + sum(map(_padded, read)))
        return total

    def cycles(self) -> int:
        """Cycles of every step by the TPU compiler's estimates; 0 for other targets.

        It has no estimate for gathers, sorts and most reshapes, and next to none for
        copies that change a layout.
        """
        return sum(
            times * int(match[1])
            for instruction, times, branch in self._walk(self._entry, fused=False)
            if not branch and (match := _CYCLES.search(instruction.attributes))
        )

    def _walk(
        self, name: str, *, fused: bool, times: int = 1, branch: bool = False
    ) -> Iterator[tuple[Instruction, int, bool]]:
        """Yields (instruction, its runs in a step, whether a branch contains it)."""
        for instruction in self._computations.get(name, []):
            yield instruction, times, branch
            runs, in_branch, inner = times, branch, _called(instruction)
            if instruction.opcode == "while":
                runs *= self._loop_trips(instruction)
            elif instruction.opcode == "conditional":
                in_branch = True
            elif instruction.opcode != "call" and not fused:
                continue
            for callee in inner:
                yield from self._walk(callee, fused=fused, times=runs, branch=in_branch)

    def _loop_trips(self, loop: Instruction) -> int:
        match = _TRIPS.search(loop.attributes)
        if match:
            return int(match[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        limits = [
            int(i.operands[0])
            for i in self._computations.get(condition[1] if condition else "", [])
            if i.opcode == "constant" and "".join(i.operands).isdigit()
        ]
        return limits[0] if len(limits) == 1 else self._trips

    def _payload(self, kind: str, instruction: Instruction) -> int:
        operands = sum(_bytes(self._types.get(n, "")) for n in instruction.operands)
        if kind != "all-gather":
            return operands
        started = instruction.opcode.endswith("-start")  # its type: operands, results
        return _bytes(instruction.type) - started * operands


def aliased_outputs(text: str) -> int:
    """Counts the results that reuse the memory of an argument."""
    return len(re.findall(r"\{[\d, ]*\}: \(\d+, ", text.partition("\n")[0]))


def _instruction(name: str, rest: str) -> Instruction:
    rest = re.sub(r"/\*.*?\*/", "", rest)
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    type_, call = rest[:end], rest[end:].strip()
    opcode, _, _ = call.partition("(")
    close = _closing(call[len(opcode) :]) + len(opcode)
    inside = re.sub(r"\{[^}]*\}", "", call[len(opcode) + 1 : close])
    inside = re.sub(r"\[[\d,]*\]", "", inside)
    operands = [
        part.split()[-1].lstrip("%") for part in inside.split(",") if part.strip()
    ]
    return Instruction(name, type_, opcode.strip(), tuple(operands), call[close + 1 :])


def _closing(text: str) -> int:
    """The index that closes the parenthesis which opens `text`."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return index
    return len(text) - 1


def _called(instruction: Instruction) -> list[str]:
    branches = _BRANCHES.search(instruction.attributes)
    names = [name for _, name in _CALLED.findall(instruction.attributes)]
    listed = branches[1].split(",") if branches else []
    return names + [name.strip().lstrip("%") for name in listed]


def _group(collective: Instruction) -> int:
    """The number of devices in each group of a collective."""
    text = collective.attributes
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(iota[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return listed[1].count(",") + 1
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", text):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])  # or a part of one
        return math.prod(int(part or sides[axis]) for axis, part in axes)
    return 2  # a permutation has pairs


def _hops(kind: str, size: int) -> float:
    """How often each device of a ring of `size` sends the whole array."""
    if kind == "collective-permute":
        return 1.0
    return (1 + (kind == "all-reduce")) * (size - 1) / size


def _bytes(type_: str) -> int:
    return sum(
        math.prod(_sides(sides)) * _BITS.get(kind, 8 * kind.startswith("f8")) // 8
        for kind, sides, _ in _ARRAY.findall(type_)
    )


def _padded(type_: str) -> int:
    """Bytes of an array in main memory, with the padding of its layout's tiles."""
    total = 0
    for kind, sides, layout in _ARRAY.findall(type_):
        order, _, tiling = layout.partition(":")
        if _ELSEWHERE.search(tiling):
            continue
        dims = _sides(sides)
        if order:  # minor to major
            dims = [dims[int(axis)] for axis in reversed(order.split(","))]
        if (tile := re.search(r"T\(([\d,]+)\)", tiling)) and dims:
            for minor, side in enumerate(reversed(_sides(tile[1]))):
                if minor < len(dims):
                    dims[-1 - minor] = -(-dims[-1 - minor] // side) * side
        bits = _BITS.get(kind, 8 * kind.startswith("f8"))
        total += math.prod(dims) * bits // 8
    return total


def _sides(text: str) -> list[int]:
    return [int(side) for side in text.split(",") if side]
