"""Everything that is to be measured on a device, in one run of ten minutes at most.

    python examples/measure.py --out measured            # on JAX's default device
    python examples/measure.py --out measured --quick    # small inputs, to see that it runs

The golden cases are replayed, the losses are timed against the plain formula, optax and torch
(eager and compiled, where it is installed), and the heads, the matching and the steps of two-stage
detectors are timed. Each step is a process of its own with a limit, writes what it prints into a
file of the folder, and is stopped at its limit; what it has printed until then stays.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent
GOLDEN = (
    "tests/laws/test_golden.py",
    "tests/laws/test_golden_later.py",
    "tests/detectors/heads/test_golden_heads.py",
)


@dataclass(frozen=True)
class Step:
    """One process.

    Args:
      arguments: What Python gets, from the repository's root.
      quick: What it gets besides for a quick run.
      seconds: After which it is stopped.
    """

    arguments: tuple[str, ...]
    quick: tuple[str, ...]
    seconds: int


STEPS = {
    "benchmark": Step(("examples/benchmark.py", "--markdown"), ("--quick", "--only", "focal"), 240),
    "heads": Step(("examples/head_cost.py",), ("--quick", "--head", "FCOS", "--batch", "1"), 90),
    "matching": Step(("examples/matching.py",), ("--quick",), 45),
    "two_stages": Step(("examples/two_stage_cost.py",), ("--quick", "--step", "samples"), 75),
    # Last: the others' numbers count more, should the time run out.
    "golden": Step(("-m", "pytest", "-n", "0", *GOLDEN), ("-k", "FocalLoss"), 150),
}


def run(step: Step, platform: str, quick: bool, file: Path) -> str:
    """How a step ended: "done", "failed" or "stopped". What it printed is in the file."""
    environment = os.environ | {
        "TESTS_ON": platform,
        # torch and JAX share the memory of a GPU.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    command = [sys.executable, *step.arguments, *(step.quick if quick else ())]
    with file.open("w") as output:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=step.seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return "stopped"
    return "failed" if code else "done"


def main(argv: list[str] | None = None) -> dict[str, str]:
    """Runs all steps, and returns how each one ended."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that it runs")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0]
    title = f"{device.device_kind}, jax {jax.__version__}, {time.strftime('%Y-%m-%d')}"
    print(title)
    ends = {}
    for name, step in STEPS.items():
        started = time.perf_counter()
        file = options.out / f"{name}.txt"
        ends[name] = run(step, device.platform, options.quick, file)
        print(f"{name:<12}{ends[name]:<8}{time.perf_counter() - started:>6.0f} s  {file}")
    return ends


if __name__ == "__main__":
    if "failed" in main().values():
        sys.exit(1)
