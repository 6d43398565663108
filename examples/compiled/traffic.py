"""What a compiled program moves and starts, read from its text.

The text is XLA's optimised HLO. Each instruction of the entry computation is a kernel, or a few:
it reads its operands from memory and writes its result. So the sum of their sizes is what the
program moves. Of an operand of which a kernel makes slices only, or picks elements, no more counts
than what is made of it; and of an array that a kernel gives back with a slice written anew, the
slice alone, since XLA updates it in place, and copies it before by another kernel where it must.
"""

import math
import re
from typing import NamedTuple

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "s4", "u4", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
    "token": 0,
}
# Instructions that move nothing and start nothing.
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
    "opt-barrier",
}

# Instructions that read no more of their first operand than they give.
PICKING = {"slice", "dynamic-slice", "gather"}
# Instructions that write into their first operand, in place, and which operand holds what they
# write. A scatter reads what it adds to. One into several arrays counts as if it wrote all of them.
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{")
_INSTRUCTION = re.compile(
    r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)(?= [\w\-]+\()|\S+) ([\w\-]+)\((.*)"
)
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^}]*\})?")


class Traffic(NamedTuple):
    """What a program moves, in bytes, and how many kernels it starts."""

    bytes: int = 0
    kernels: int = 0
    loops_without_count: int = 0  # Loops whose trips the program does not state; they count once.

    def __add__(self, other: "Traffic") -> "Traffic":  # type: ignore[override]
        return Traffic(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, trips: int) -> "Traffic":
        """The traffic of so many trips of a loop."""
        return Traffic(trips * self.bytes, trips * self.kernels, self.loops_without_count)


def read_traffic(text: str) -> Traffic:
    """The traffic of a program: its entry, with loops times their trips.

    What lies in a TPU's vector memory, which the text marks by S(1), is not counted.

    Raises: ValueError for a text without an entry computation.
    """
    computations: dict[str, list[str]] = {}
    lines: list[str] | None = None
    entry = None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    if entry is None:
        raise ValueError("no ENTRY computation in the program's text")
    return _traffic(entry, computations)


def array_bytes(shape: str) -> int:
    """The size of an array, or of the arrays of a tuple, outside a TPU's vector memory."""
    return sum(
        BYTES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes, layout in _ARRAY.findall(shape)
        if "S(1)" not in layout
    )


def _traffic(name: str, computations: dict[str, list[str]]) -> Traffic:
    sizes: dict[str, int] = {}
    total = Traffic()
    for line in computations.get(name, ()):
        if not (found := _INSTRUCTION.match(line)):
            continue
        result, shape, operation, rest = found.groups()
        sizes[result] = array_bytes(shape)
        if operation in FREE or operation.endswith("-done"):
            continue
        if operation == "while":
            trips = _trips(rest, computations)
            body = _traffic(_called("body", rest), computations)
            if trips is None:
                body = body._replace(loops_without_count=body.loops_without_count + 1)
            total += body.times(1 if trips is None else trips)
        elif operation == "conditional":
            branches = re.findall(r"%([\w.\-]+)", rest[rest.index("computation") :])
            each = [_traffic(branch, computations) for branch in branches if branch in computations]
            total += max(each, default=Traffic())
        elif operation == "call" and _called("to_apply", rest) in computations:
            total += _traffic(_called("to_apply", rest), computations)
        elif operation in ("copy-start", "slice-start"):
            total += Traffic(_prefetched(shape), 1)
        elif update := _update(operation, shape, _operands(rest)):
            _, *others = (sizes.get(operand, 0) for operand in _operands(rest))
            slices = min(sizes.get(update, 0), sizes[result])
            added_to = slices if operation == "scatter" else 0
            total += Traffic(sum(others) + slices + added_to, 1)
        else:
            written = array_bytes(_started(shape) if operation.endswith("-start") else shape)
            fused = _called("calls", rest)
            moved = max(written - _left_in_place(fused, computations), 0)
            parts = _parts_read(fused, computations)
            for i, operand in enumerate(_operands(rest)):
                read = round(sizes.get(operand, 0) * parts.get(i, 1))
                moved += min(read, written) if i == 0 and operation in PICKING else read
            total += Traffic(moved, 1)
    return total


def _trips(rest: str, computations: dict[str, list[str]]) -> int | None:
    """How often a loop runs, as it states or as its condition says, which is i < N.

    JAX's `scan` and `fori_loop` of known length are such loops, with i from 0.
    """
    if stated := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', rest):
        return int(stated[1])
    lines = "\n".join(computations.get(_called("condition", rest), ()))
    condition = re.search(r"ROOT .* compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT", lines)
    if not condition:
        return None
    counter, bound = map(re.escape, condition.groups())
    is_counter = re.search(rf"%{counter} = \S+ get-tuple-element\(", lines)
    trips = re.search(rf"%{bound} = \S+ constant\((\d+)\)", lines)
    return int(trips[1]) if is_counter and trips else None


def _parts_read(name: str, computations: dict[str, list[str]]) -> dict[int, float]:
    """Of each parameter of a fused computation the part, from 0 to 1, that its result needs.

    Less than 1 is needed where only slices are, of it or of what is computed from it.
    """
    found = _instructions(name, computations)
    in_place = _updated_in_place(found)
    sizes = {result: _elements(shape) for _, (result, shape, _, _) in found}
    needed = dict.fromkeys(sizes, 0.0)
    parts: dict[int, float] = {}
    for line, (result, _, operation, rest) in reversed(found):
        size = max(sizes[result], 1)
        is_root = line.lstrip().startswith("ROOT ")
        need = size if is_root else min(needed[result], size)
        if operation == "parameter":
            parts[int(rest.split(")")[0])] = need / size
            continue
        for i, operand in enumerate(_operands(rest)):
            if operand not in sizes:
                continue
            more = need
            if result in in_place:
                added_to = sizes[in_place[result]] if operation == "scatter" else 0
                more = added_to if i == 0 else sizes[operand]
            elif operation == "tuple":
                more = sizes[operand]
            elif not (i == 0 and operation in PICKING):
                more *= max(sizes[operand] / size, 1)  # Of what is broadcast no more than it has.
            needed[operand] += more
    return parts


def _left_in_place(name: str, computations: dict[str, list[str]]) -> int:
    """Of a fused computation's results the bytes that it does not write; see `UPDATES`."""
    found = _instructions(name, computations)
    sizes = {result: array_bytes(shape) for _, (result, shape, _, _) in found}
    updates = _updated_in_place(found)
    return sum(sizes[result] - sizes.get(update, 0) for result, update in updates.items())


def _updated_in_place(found: list[tuple[str, tuple[str, ...]]]) -> dict[str, str]:
    """The results of a fused computation that are of `UPDATES`, and what each writes."""
    by_name = {
        result: (operation, _operands(rest), shape) for _, (result, shape, operation, rest) in found
    }
    roots = [groups[0] for line, groups in found if line.lstrip().startswith("ROOT ")]
    updates = {}
    while roots:
        root = roots.pop()
        operation, operands, shape = by_name.get(root, ("", [], ""))
        if operation in ("tuple", "bitcast"):
            roots += operands
        elif update := _update(operation, shape, operands):
            updates[root] = update
    return updates


def _update(operation: str, shape: str, operands: list[str]) -> str | None:
    """The operand that is written into the first one; None where it is not; see `UPDATES`."""
    is_one = operation in UPDATES and not shape.startswith("(")
    return operands[UPDATES[operation]] if is_one else None


def _instructions(
    name: str, computations: dict[str, list[str]]
) -> list[tuple[str, tuple[str, ...]]]:
    """The lines of a computation that are instructions, and what each line has."""
    lines = computations.get(name, ())
    return [(line, match.groups()) for line in lines if (match := _INSTRUCTION.match(line))]


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", rest.split("), ")[0])


def _elements(shape: str) -> int:
    """How many numbers an array has, or the arrays of a tuple."""
    return sum(
        math.prod(int(n) for n in sizes.split(",") if n) for _, sizes, _ in _ARRAY.findall(shape)
    )


def _started(shape: str) -> str:
    """What a kernel beside others gives: its own type is ((operands), result, context)."""
    found = re.fullmatch(r"\(\(.*?\), (.*), [^,]+\)", shape)
    return found[1] if found else shape


def _prefetched(shape: str) -> int:
    """What is moved by a copy that runs beside the kernels, of an array or of a slice of it.

    Its result is a tuple of source, destination and a context. The smaller of the two is moved,
    once where one end is a TPU's vector memory.
    """
    arrays = [array for array in _ARRAY.findall(shape) if array[1]]
    ends = 1 if any("S(1)" in layout for _, _, layout in arrays) else 2
    sizes = [array_bytes(f"{dtype}[{numbers}]") for dtype, numbers, _ in arrays]
    return ends * min(sizes, default=0)


def _called(attribute: str, rest: str) -> str:
    found = re.search(rf"{attribute}=%?([\w.\-]+)", rest)
    return found[1] if found else ""
