"""The speed of the losses, compared with the plain formula, optax and torch in one run.

    python examples/benchmark.py                  # every loss at training size
    python examples/benchmark.py --only focal     # losses with "focal" in their name
    python examples/benchmark.py --plot speed.png --markdown
    python examples/benchmark.py --scaling        # 10⁴ to 10⁷ rows
    python examples/benchmark.py --default-malloc # without the settings below

The contenders take turns, one timed call each, and their medians are compared. torch is one of the
contenders where it is installed. `head_cost.py` measures whole heads.

Columns, for the value, and for the value and the gradient with respect to pred:

    ms          time of this package's loss in milliseconds
    best        the fastest other contender and its time
    x           the time of the fastest other contender divided by this package's
    floor       this package's time divided by the time of a copy that moves the same bytes: the
                inputs are read once and, for a gradient, pred is written once
    temp        memory of value and gradient besides inputs and outputs, divided by the size of pred
    compile     seconds to compile value and gradient
    err         relative error of float32 against float64, in units of float32's eps, of a sum over
                predictions from -100 to 100: this package's, and the smallest of the others
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

import visdet_jax
from peers import CASES
from peers.case import Case, Inputs
from peers.torch_processes import Torch, seconds_of_call

KINDS = ("value", "value+grad")


@dataclass
class Row:
    """The measurements of one loss: a row of the table."""

    name: str
    times: dict[str, dict[str, float]]  # milliseconds by kind and contender
    floor: dict[str, float]  # milliseconds by kind
    temp: float
    compile: float
    errors: dict[str, dict[str, float]]  # in eps, by contender and kind

    def best(self, kind: str) -> tuple[str, float]:
        """The fastest other contender and its time."""
        others = {name: time for name, time in self.times[kind].items() if name != "ours"}
        return min(others.items(), key=lambda item: item[1])

    def ratio(self, kind: str) -> float:
        """The time of the fastest other contender divided by ours."""
        return self.best(kind)[1] / self.times[kind]["ours"]


def jax_contenders(case: Case) -> dict[str, Callable[..., jax.Array]]:
    """The contenders that are functions from JAX arrays to a scalar, by name."""
    named = {"ours": case.ours, "jnp": case.plain, "optax": case.optax}
    return {name: function for name, function in named.items() if function is not None}


class Contenders:
    """All contenders of a case, compiled for the same inputs."""

    def __init__(self, case: Case, inputs: Inputs, torch: Torch | None) -> None:
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
        """The result of a contender."""
        call = self.calls.get((name, kind))
        return call() if call else self.torch.result(name, kind)

    def milliseconds(self, kind: str, repeats: int) -> dict[str, float]:
        """The median time of each contender; torch's is that of its fastest process."""
        times: dict[str, list[list[float]]] = {name: [] for name in self.names}
        for _ in range(repeats):
            for name in self.names:
                call = self.calls.get((name, kind))
                taken = [seconds_of_call(call)] if call else self.torch.seconds(name, kind)
                times[name].append(taken)
        return {
            name: min(statistics.median(ts) for ts in zip(*turns, strict=True)) * 1e3
            for name, turns in times.items()
        }


def _call(compiled: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> Any:
    return jax.block_until_ready(compiled(*arrays))


def median_milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """The median time of a call."""
    return statistics.median(seconds_of_call(call) for _ in range(repeats)) * 1e3


def floors(inputs: Inputs, repeats: int) -> dict[str, float]:
    """Milliseconds to move the bytes that must be moved, at the speed of a copy of pred."""
    pred = jnp.asarray(inputs[0])
    copy = jax.jit(lambda x: x + 1)
    copying = median_milliseconds(lambda: jax.block_until_ready(copy(pred)), repeats)
    read = sum(x.nbytes for x in inputs)
    moved = {"value": read, "value+grad": read + pred.nbytes}
    return {kind: copying * n / (2 * pred.nbytes) for kind, n in moved.items()}


def rounding(case: Case, scale: float, torch: Torch | None) -> dict[str, dict[str, float]]:
    """The errors of each contender in eps: of the value, and the largest of the gradient's entries.

    Errors are relative to the entry plus 1e-7 of the largest entry.
    """
    inputs = case.inputs(np.random.default_rng(1), min(scale, 0.01), wide=True)
    exact = tuple(x.astype(np.float64) if x.dtype == np.float32 else x for x in inputs)
    with jax.enable_x64(True):
        exact_value, exact_gradient = jax.tree.map(
            np.asarray, jax.jit(jax.value_and_grad(case.ours))(*map(jnp.asarray, exact))
        )
    errors = {}
    contenders = Contenders(case, inputs, torch)
    for name in contenders.names:
        result = contenders.result(name, "value+grad")
        value, gradient = (np.asarray(x, np.float64) for x in result)
        eps = np.finfo(np.float32).eps
        sizes = np.abs(exact_gradient) + 1e-7 * np.abs(exact_gradient).max()
        errors[name] = {
            "value": float(abs(value - exact_value) / abs(exact_value) / eps),
            "value+grad": float(np.max(np.abs(gradient - exact_gradient) / sizes) / eps),
        }
    return errors


def measure(case: Case, scale: float, repeats: int, torch: Torch | None) -> Row:
    """One row of the table."""
    inputs = case.inputs(np.random.default_rng(0), scale)
    contenders = Contenders(case, inputs, torch)
    values = {name: float(contenders.result(name, "value")) for name in contenders.names}
    if not np.allclose(list(values.values()), values["ours"], rtol=1e-3):
        raise ValueError(f"{case.name}: the contenders compute different values: {values}")
    times = {kind: contenders.milliseconds(kind, repeats) for kind in KINDS}
    temp, seconds = contenders.temp, contenders.compile_seconds
    errors = rounding(case, scale, torch)
    return Row(case.name, times, floors(inputs, repeats), temp, seconds, errors)


def table(rows: list[Row], markdown: bool) -> str:
    """The table of all rows, with aligned columns or as markdown."""
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
    """The geometric mean of the ratios to the fastest other contender."""
    return statistics.geometric_mean(row.ratio(kind) for row in rows)


def every_time(rows: list[Row]) -> str:
    """A table of the times of all contenders in ms: value / value and gradient."""
    names = list(dict.fromkeys(name for row in rows for name in row.times["value"]))
    lines = [f"{'ms, value / value+grad':<24}" + "".join(f"{name:>18}" for name in names)]
    for row in rows:
        cells = [
            " / ".join(f"{row.times[kind].get(n, np.nan):.2f}" for kind in KINDS) for n in names
        ]
        lines.append(f"{row.name:<24}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def scaling(cases: list[Case], quick: bool) -> str:
    """A table of nanoseconds per row of value and gradient, by the number of rows."""
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
    """A sentence about the time that a module call adds outside jit, and that the import takes."""
    loss = visdet_jax.FocalLoss()
    pred, target = jnp.zeros((8, 4)), jnp.zeros(8, jnp.int32)
    jitted = jax.jit(lambda p, t: loss(p, t))

    def microseconds(call: Callable[..., jax.Array]) -> float:
        times = timeit.repeat(lambda: jax.block_until_ready(call(pred, target)), number=20)
        return statistics.median(times) / 20 * 1e6

    microseconds(loss), microseconds(jitted)  # The first calls compile.
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
    """Draw bars of the ratios to the fastest other contender; 1 is equally fast."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.42 * len(rows) + 1.6), layout="constrained")
    place = np.arange(len(rows))[::-1]
    # Two of Okabe and Ito's colours, which the colour-blind can tell apart.
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


def processor() -> str:
    """The processor's name and the number of its cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # Linux has it.
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def versions(torch: Torch | None) -> str:
    """The device or processor, the versions of the libraries, and the date."""
    device = jax.devices()[0]
    name = processor() if device.platform == "cpu" else device.device_kind
    parts = [f"{name}, jax {jax.__version__}"]
    parts += [f"optax {importlib.metadata.version('optax')}"]
    parts += [f"torch {torch.version}" if torch else "no torch"]
    parts += [f"Python {platform.python_version()}", time.strftime("%Y-%m-%d")]
    parts += [flags] if (flags := os.environ.get("XLA_FLAGS")) else []
    return ", ".join(parts)


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the tables and return the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only losses with this text in their name")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each contender")
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that it runs")
    parser.add_argument("--no-torch", action="store_true", help="leave torch out")
    parser.add_argument("--scaling", action="store_true", help="print the cost by number of rows")
    parser.add_argument(
        "--default-malloc", action="store_true", help="leave glibc's malloc as it is by default"
    )
    parser.add_argument("--plot", metavar="PNG", help="draw the ratios")
    parser.add_argument("--markdown", action="store_true", help="print the table as markdown")
    options = parser.parse_args(argv)
    scale, repeats = (0.002, 1) if options.quick else (1.0, options.repeats)
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        names = ", ".join(case.name for case in CASES)
        parser.error(f"no loss has {options.only!r} in its name: {names}")
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


# glibc's malloc returns arrays of this size to the system and maps them anew at each call, which
# can take longer than the loss. These settings make it keep its memory, as other mallocs do in a
# training program, for all contenders alike.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}


if __name__ == "__main__":
    if KEEP_MEMORY.keys() - os.environ.keys() and "--default-malloc" not in sys.argv:
        os.execve(sys.executable, [sys.executable, *sys.argv], KEEP_MEMORY | dict(os.environ))
    main()
