"""How fast the losses are: against the plain formula, optax and torch, in one run.

    python examples/benchmark.py                  # every loss at training size
    python examples/benchmark.py --only focal     # those whose name holds "focal"
    python examples/benchmark.py --plot speed.png --markdown
    python examples/benchmark.py --scaling        # 10⁴ to 10⁷ rows

The contenders take turns, one timed call each, and medians are compared. torch is one of them
where it is installed. Whole heads are measured by `head_cost.py`.

Columns, for the value and for value and gradient by pred:

    ms          ours
    best        the fastest other contender
    x           how many times faster than it ours is
    floor       ours over the time a copy takes to move the bytes that must move: the inputs
                read once and, for a gradient, pred written once
    temp        memory of value and gradient beside inputs and outputs, over the size of pred
    compile     seconds, value and gradient
    err         relative error in float32 against float64, in units of float32's eps, of a sum over
                predictions from -100 to 100: ours, and the other contenders' best
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import visdet_jax
from peers import CASES
from peers.case import Case
from peers.torch_processes import Torch, seconds_of_one

KINDS = ("value", "value+grad")


@dataclass
class Row:
    """What was measured of one loss."""

    name: str
    times: dict[str, dict[str, float]]  # by kind, then by contender, in ms
    floor: dict[str, float]
    temp: float
    compile: float
    errors: dict[str, dict[str, float]]

    def best(self, kind: str) -> tuple[str, float]:
        """The fastest other contender and its time."""
        others = {name: t for name, t in self.times[kind].items() if name != "ours"}
        return min(others.items(), key=lambda item: item[1])

    def ratio(self, kind: str) -> float:
        """How many times faster than the best contender ours is."""
        return self.best(kind)[1] / self.times[kind]["ours"]


def jax_contenders(case: Case) -> dict[str, Callable[..., jax.Array]]:
    """Scalar functions of jax arrays, by contender."""
    named = {"ours": case.ours, "jnp": case.plain, "optax": case.optax}
    return {name: function for name, function in named.items() if function is not None}


class Contenders:
    """All contenders for one case on the same inputs, compiled."""

    def __init__(self, case: Case, inputs: tuple, torch: Torch | None) -> None:
        arrays = tuple(jnp.asarray(x) for x in inputs)
        self.calls: dict[tuple[str, str], Callable[[], Any]] = {}
        self.torch = torch
        for name, function in jax_contenders(case).items():
            for kind, traced in zip(KINDS, (function, jax.value_and_grad(function)), strict=True):
                started = time.perf_counter()
                compiled = jax.jit(traced).lower(*arrays).compile()
                if (name, kind) == ("ours", "value+grad"):
                    self.compile_seconds = time.perf_counter() - started
                    self.temp = compiled.memory_analysis().temp_size_in_bytes / arrays[0].nbytes
                self.calls[name, kind] = functools.partial(_call, compiled, arrays)
        self.names = [name for name, kind in self.calls if kind == "value"]
        if torch is not None:
            torch.prepare(case, inputs)
            self.names += torch.NAMES

    def result(self, name: str, kind: str) -> Any:
        """What a contender computes."""
        call = self.calls.get((name, kind))
        return call() if call else self.torch.result(name, kind)

    def milliseconds(self, kind: str, repeats: int) -> dict[str, float]:
        """The median of each contender, all called in turn; of torch's, in its fastest process."""
        times: dict[str, list[list[float]]] = {name: [] for name in self.names}
        for _ in range(repeats):
            for name in self.names:
                call = self.calls.get((name, kind))
                taken = [seconds_of_one(call)] if call else self.torch.seconds(name, kind)
                times[name].append(taken)
        return {
            name: min(statistics.median(ts) for ts in zip(*turns, strict=True)) * 1e3
            for name, turns in times.items()
        }


def _call(compiled, arrays):
    return jax.block_until_ready(compiled(*arrays))


def median_milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Of one call alone."""
    return statistics.median(seconds_of_one(call) for _ in range(repeats)) * 1e3


def floors(inputs: tuple, repeats: int) -> dict[str, float]:
    """Milliseconds to move the bytes that must move, at the speed of a copy of pred."""
    pred = jnp.asarray(inputs[0])
    copy = jax.jit(lambda x: x + 1)
    copying = median_milliseconds(lambda: jax.block_until_ready(copy(pred)), repeats)
    read = sum(x.nbytes for x in inputs)
    moved = {"value": read, "value+grad": read + pred.nbytes}
    return {kind: copying * n / (2 * pred.nbytes) for kind, n in moved.items()}


def rounding(case: Case, scale: float, torch: Torch | None) -> dict[str, dict[str, float]]:
    """The error of each contender in eps, of the value and of the gradient's worst entry.

    Entries below 1e-7 of the largest are compared with that.
    """
    inputs = case.inputs(np.random.default_rng(1), min(scale, 0.01), wide=True)
    exact = tuple(x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs)
    with jax.enable_x64(True):
        # The reduction that a case passes on is float32 in both.
        right, right_gradient = jax.tree.map(
            np.asarray, jax.jit(jax.value_and_grad(case.ours))(*map(jnp.asarray, exact))
        )
    errors = {}
    contenders = Contenders(case, inputs, torch)
    for name in contenders.names:
        result = contenders.result(name, "value+grad")
        value, gradient = (np.asarray(x, np.float64) for x in result)
        eps = np.finfo(np.float32).eps
        scale_of = np.abs(right_gradient) + 1e-7 * np.abs(right_gradient).max()
        errors[name] = {
            "value": float(abs(value - right) / abs(right) / eps),
            "value+grad": float(np.max(np.abs(gradient - right_gradient) / scale_of) / eps),
        }
    return errors


def measure(case: Case, scale: float, repeats: int, torch: Torch | None) -> Row:
    """One row of the table."""
    inputs = case.inputs(np.random.default_rng(0), scale)
    contenders = Contenders(case, inputs, torch)
    values = {name: float(contenders.result(name, "value")) for name in contenders.names}
    if not np.allclose(list(values.values()), values["ours"], rtol=1e-3):
        raise ValueError(f"{case.name}: not the same is computed, got {values}")
    times = {kind: contenders.milliseconds(kind, repeats) for kind in KINDS}
    temp, seconds = contenders.temp, contenders.compile_seconds
    errors = rounding(case, scale, torch)
    return Row(case.name, times, floors(inputs, repeats), temp, seconds, errors)


def table(rows: list[Row], markdown: bool) -> str:
    """The rows, aligned or as markdown."""
    head = ["loss"]
    for kind in ("value", "v+g"):
        head += [f"{kind} ms", "best", "x", "floor"]
    head += ["temp", "compile", "err v", "err g"]
    lines = [head]
    for row in rows:
        cells = [row.name]
        for kind in KINDS:
            name, best = row.best(kind)
            ours = row.times[kind]["ours"]
            cells += [
                f"{ours:.2f}",
                f"{name} {best:.2f}",
                f"{row.ratio(kind):.2f}",
                f"{ours / row.floor[kind]:.1f}",
            ]
        cells += [f"{row.temp:.2f}", f"{row.compile:.2f}"]
        for kind in KINDS:
            others = min(e[kind] for name, e in row.errors.items() if name != "ours")
            cells.append(f"{row.errors['ours'][kind]:.2g} / {others:.2g}")
        lines.append(cells)
    means = [""] * len(head)
    means[0] = "geometric mean"
    means[3], means[7] = (f"{geometric_mean(rows, kind):.2f}" for kind in KINDS)
    lines.append(means)
    if markdown:
        lines.insert(1, ["---"] * len(head))
        return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    widths = [max(len(cells[i]) for cells in lines) for i in range(len(head))]
    return "\n".join(
        cells[0].ljust(widths[0])
        + "".join(cell.rjust(w + 2) for cell, w in zip(cells[1:], widths[1:], strict=True))
        for cells in lines
    )


def geometric_mean(rows: list[Row], kind: str) -> float:
    """Of the ratios to the best contender."""
    return statistics.geometric_mean(row.ratio(kind) for row in rows)


def every_time(rows: list[Row]) -> str:
    """The times of all contenders in ms, value / value and gradient."""
    names = list(dict.fromkeys(name for row in rows for name in row.times["value"]))
    lines = [f"{'ms, value / value+grad':<24}" + "".join(f"{name:>18}" for name in names)]
    for row in rows:
        cells = [
            " / ".join(f"{row.times[kind].get(n, np.nan):.2f}" for kind in KINDS) for n in names
        ]
        lines.append(f"{row.name:<24}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def scaling(cases: list[Case], quick: bool) -> str:
    """Nanoseconds a row of value and gradient, by the number of rows."""
    sizes = (10**3, 10**4) if quick else (10**4, 10**5, 10**6, 10**7)
    lines = [f"{'ns a row, value+grad':<24}" + "".join(f"{n:>12,}" for n in sizes)]
    for case in cases:
        if not case.rows_of:
            continue
        cells = []
        for n in sizes:
            # Few classes, so that ten million rows fit.
            inputs = case.inputs(np.random.default_rng(0), n / case.rows_of, classes=4)
            arrays = tuple(jnp.asarray(x) for x in inputs)
            compiled = jax.jit(jax.value_and_grad(case.ours)).lower(*arrays).compile()
            call = functools.partial(_call, compiled, arrays)
            cells.append(f"{median_milliseconds(call, 5) * 1e6 / n:>12.1f}")
        lines.append(f"{case.name:<24}" + "".join(cells))
    return "\n".join(lines)


def overheads() -> str:
    """What the module call adds outside jit, and what the import adds."""
    loss = visdet_jax.FocalLoss()
    pred, target = jnp.zeros((8, 4)), jnp.zeros(8, jnp.int32)
    jitted = jax.jit(lambda p, t: loss(p, t))

    def microseconds(call):
        times = timeit.repeat(lambda: jax.block_until_ready(call(pred, target)), number=20)
        return statistics.median(times) / 20 * 1e6

    microseconds(loss), microseconds(jitted)  # compiles
    module, inside = microseconds(loss), microseconds(jitted)
    clock = "time.perf_counter()"
    code = f"import jax, flax.nnx, time; t = {clock}; import visdet_jax; print({clock} - t)"
    imports = [
        float(subprocess.run([sys.executable, "-c", code], check=True, stdout=-1, text=True).stdout)
        for _ in range(3)
    ]
    return (
        f"a module call outside jit takes {module - inside:.0f} us more than the jitted call "
        f"({inside:.0f} us); import visdet_jax adds {statistics.median(imports):.2f} s"
    )


def plot(rows: list[Row], path: str, title: str) -> None:
    """Bars of the ratios to the best contender; 1 is as fast."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    place = np.arange(len(rows))[::-1]
    # Two of Okabe and Ito's colours, which stay apart in every colour blindness.
    for kind, offset, color in zip(KINDS, (0.2, -0.2), ("#0072B2", "#E69F00"), strict=True):
        ratios = [row.ratio(kind) for row in rows]
        label = f"{kind} (geometric mean {geometric_mean(rows, kind):.2f})"
        axes.barh(place + offset, ratios, 0.38, color=color, label=label)
        for y, row in zip(place + offset, rows, strict=True):
            text = f" {row.ratio(kind):.1f}, {row.best(kind)[0]}"
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
            axes.text(row.ratio(kind), y, text, va="center", fontsize=8, bbox=box)
    axes.axvline(1, color="black", linewidth=1, zorder=1.5)
    axes.set_yticks(place, [row.name for row in rows])
    axes.set_xlabel("times faster than the best contender, which is named at the bar")
    axes.set_title(title, fontsize=10)
    axes.margins(x=0.15, y=0.01)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)


def versions(torch: Torch | None) -> str:
    """Device, versions and date."""
    parts = [f"{jax.devices()[0].device_kind}, jax {jax.__version__}"]
    parts += [f"optax {importlib.metadata.version('optax')}"]
    parts += [f"torch {torch.version}" if torch else "no torch"]
    parts += [f"Python {platform.python_version()}", time.strftime("%Y-%m-%d")]
    return ", ".join(parts)


def main(argv: list[str] | None = None) -> list[Row]:
    """Prints the tables and returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="losses whose name holds this")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that it runs")
    parser.add_argument("--no-torch", action="store_true", help="leave torch out")
    parser.add_argument("--scaling", action="store_true", help="cost by the number of rows")
    parser.add_argument("--plot", metavar="PNG", help="draw the ratios")
    parser.add_argument("--markdown", action="store_true", help="the table as the README has it")
    options = parser.parse_args(argv)
    scale, repeats = (0.002, 1) if options.quick else (1.0, options.repeats)
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"no loss's name holds {options.only!r}: {', '.join(c.name for c in CASES)}")
    if options.scaling:
        print(scaling(cases, options.quick))
        return []
    torch = None
    if not options.no_torch and importlib.util.find_spec("torch") is not None:
        torch = Torch(on_gpu=jax.default_backend() == "gpu")
    rows = []
    for case in cases:
        rows.append(measure(case, scale, repeats, torch))
        print(every_time(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    title = versions(torch)
    print(title, every_time(rows), table(rows, options.markdown), overheads(), sep="\n\n")
    if options.plot:
        plot(rows, options.plot, title)
    return rows


# Arrays of this size are given back to the system and faulted in again at each call by glibc's
# malloc, which can take longer than the loss. As a training program does with any other malloc,
# memory is kept, for all contenders alike.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


if __name__ == "__main__":
    if KEEP_MEMORY.keys() - os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], KEEP_MEMORY | dict(os.environ))
    main()
