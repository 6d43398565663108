"""Reads the programs that users of TPUs and GPUs get, on a machine that has neither.

    python examples/accelerators.py --target v5e            # every loss, then every head
    python examples/accelerators.py --target h200 --only softmax
    python examples/accelerators.py --target v5e --heads --markdown

XLA's compilers for both run without the device: for a TPU `pip install libtpu`, for an NVIDIA GPU
`pip install "jax[cuda13]"`. Value, and value and gradient, of every loss at training size are
compiled, ours and the plain formula written in jnp, and every head's on 16 images of 800 x 1333.

moved    bytes that the program's kernels read and write, over those of each input read once and,
         with the gradient, pred's size written once; less than 1 where a part is not read
kernels  how many kernels it starts; loops count times their trips
scratch  memory for intermediate results, over pred's size
time     for a TPU its compiler's own estimate, over the time that the least takes at full bandwidth
"""

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from compiled.cases import CASES as OTHERS
from compiled.heads import HEADS, shapes_of_batch
from compiled.targets import TARGETS, Target, sharding_on
from compiled.traffic import read_traffic
from peers import CASES
from two_stage_cost import STEPS, steps
from visdet_jax.detectors import build_head

BATCH, BOXES = 16, 100


@dataclass(frozen=True)
class Figures:
    """What one program moves, starts and needs."""

    moved: int
    kernels: int
    scratch: int
    seconds: float  # by the TPU's compiler; NaN for a GPU, and where it has no estimate
    compile_seconds: float
    loops_without_count: int


def compile_for(function: Callable[..., Any], arguments: Any, sharding: Any) -> Figures:
    """Compiles a function of arguments of these shapes for a device, and reads the program."""

    def shape(x: Any) -> jax.ShapeDtypeStruct:
        x = x if hasattr(x, "dtype") else np.asarray(x)
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=sharding)

    shapes = jax.tree.map(shape, arguments)
    started = time.perf_counter()
    program = jax.jit(function).lower(*shapes).compile()
    compile_seconds = time.perf_counter() - started
    traffic = read_traffic(program.as_text())
    costs = program.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    seconds = costs.get("optimal_seconds", math.nan)
    return Figures(
        moved=traffic.bytes,
        kernels=traffic.kernels,
        scratch=program.memory_analysis().temp_size_in_bytes,
        seconds=seconds if seconds > 0 else math.nan,  # Some of the compiler's sums overflow.
        compile_seconds=compile_seconds,
        loops_without_count=traffic.loops_without_count,
    )


def size(tree: Any) -> int:
    """The bytes of all arrays, or shapes of arrays, of a tree."""
    arrays = (x if hasattr(x, "dtype") else np.asarray(x) for x in jax.tree.leaves(tree))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)


def loss_rows(
    target: Target, sharding: Any, only: str, scale: float
) -> Iterator[dict[str, float | str]]:
    """A row for each loss: ours and, where the benchmark has it, the plain formula."""
    rng = np.random.default_rng(0)
    losses = [(case.name, case.inputs, case.ours, case.plain) for case in CASES]
    losses += [(case.name, case.arguments, case.function, None) for case in OTHERS]
    for name, inputs, ours, plain in losses:
        if only not in name:
            continue
        arguments = inputs(rng, scale)
        pred, given = size(arguments[0]), size(arguments)
        row: dict[str, float | str] = {"loss": name}
        for whose, function in (("", ours), ("plain ", plain)):
            if function is None:
                continue
            value = compile_for(function, arguments, sharding)
            both = compile_for(jax.value_and_grad(function), arguments, sharding)
            row |= {
                f"{whose}moved, value": value.moved / given,
                f"{whose}moved": both.moved / (given + pred),
                f"{whose}kernels": both.kernels,
                f"{whose}scratch": both.scratch / pred,
                f"{whose}compile s": value.compile_seconds + both.compile_seconds,
            }
            if target.is_tpu:
                bandwidth = target.gigabytes_per_second * 1e9
                row |= {
                    f"{whose}time, value": value.seconds / (given / bandwidth),
                    f"{whose}time": both.seconds / ((given + pred) / bandwidth),
                }
        yield row


def head_rows(sharding: Any, only: str, scale: float) -> Iterator[dict[str, float | str]]:
    """A row for each head, value and gradient on a batch of COCO's size."""
    for name, config in HEADS.items():
        if only not in name:
            continue
        head = build_head(**config)
        arguments = shapes_of_batch(name, head, BATCH, scale, BOXES)
        both = compile_for(
            jax.value_and_grad(functools.partial(_total, head), allow_int=True), arguments, sharding
        )
        outputs = size(arguments[0])
        yield {
            "head": name,
            "outputs MiB": outputs / 2**20,
            "moved": both.moved / (2 * outputs),
            "kernels": both.kernels,
            "scratch / outputs": both.scratch / outputs,
            "compile s": both.compile_seconds,
            "loops without count": both.loops_without_count,
        }


def two_stage_rows(sharding: Any, only: str, scale: float) -> Iterator[dict[str, float | str]]:
    """A row for each step of Mask R-CNN's losses on a batch of COCO's size."""
    for name in STEPS:
        if only not in name:
            continue
        function, arguments = steps(BATCH, scale, BOXES, name)[name]
        figures = compile_for(function, arguments, sharding)
        yield {
            "step": name,
            "arguments MiB": size(arguments) / 2**20,
            "moved GB": figures.moved / 1e9,
            "kernels": figures.kernels,
            "scratch MiB": figures.scratch / 2**20,
            "compile s": figures.compile_seconds,
            "loops without count": figures.loops_without_count,
        }


def _total(head: Any, outputs: Any, truth: Any, keywords: dict[str, Any]) -> jax.Array:
    return sum(head.loss(outputs, *truth, **keywords).values())


def _collected(rows: Iterator[dict[str, float | str]]) -> list[dict[str, float | str]]:
    """The rows. Each is told as soon as it is there, since all of them may take an hour."""
    collected = []
    for row in rows:
        print("  ".join(map(str, row.values())), file=sys.stderr, flush=True)
        collected.append(row)
    return collected


def format_table(rows: list[dict[str, float | str]], markdown: bool) -> str:
    """The rows, aligned or as a Markdown table; a cell without a figure is empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows]
    if markdown:
        lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *cells]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [columns, *cells]
    )


def _cell(column: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if math.isnan(value):
        return ""
    whole = "kernels" in column or "MiB" in column or "loops" in column
    return f"{value:.0f}" if whole or abs(value) >= 100 else f"{value:.2f}"


def main(argv: list[str] | None = None) -> dict[str, list[dict[str, float | str]]]:
    """Prints the tables and returns their rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=TARGETS, default="v5e")
    parser.add_argument("--only", default="", help="losses and heads whose name contains this")
    parser.add_argument("--losses", action="store_true", help="no heads")
    parser.add_argument("--heads", action="store_true", help="no losses")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that it runs")
    given = parser.parse_args(argv)
    target = TARGETS[given.target]
    try:
        sharding = sharding_on(target)
    except RuntimeError as error:
        sys.exit(f"{parser.prog}: {error}")
    scale = 0.02 if given.quick else 1.0
    print(f"{given.target}, jax {jax.__version__}", flush=True)
    tables = {}
    if not given.heads:
        tables["losses"] = _collected(loss_rows(target, sharding, given.only, scale))
    if not given.losses:
        scale = 0.1 if given.quick else 1.0
        tables["heads"] = _collected(head_rows(sharding, given.only, scale))
        tables["two stages"] = _collected(two_stage_rows(sharding, given.only, scale))
    for rows in filter(None, tables.values()):
        print(format_table(rows, given.markdown), flush=True)
    return tables


if __name__ == "__main__":
    main()
