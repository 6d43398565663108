"""Replays the golden cases of later years: value and gradient in float64, value in float32."""

import json
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapters import ADAPTERS, DIFFERENCES, RAISES, Instead, Rounding
from golden.read_golden import read

FILES = sorted((Path(__file__).parent / "golden" / "later").glob("*.npz"))
RTOL = {"float64": 1e-6, "float32": 1e-4}
ATOL = {"float64": 1e-10, "float32": 1e-5}


def is_number(x):
    return isinstance(x, int | float) and not isinstance(x, bool)


class Case:
    """A golden case as a call: what is static, traced, differentiated."""

    def __init__(self, raw, precision):
        def to_array(x):
            kind = precision if x.dtype.kind == "f" else np.int32
            return x.astype(kind)

        self.adapter = ADAPTERS[raw["name"].partition("/")[0]]
        config = {k: v for k, v in raw["cfg"].items() if k != "type"}
        inputs = {
            k: to_array(v) if isinstance(v, np.ndarray) else float(v) if is_number(v) else v
            for k, v in raw["inputs"].items()
            if k not in self.adapter.static
        }
        static = {k: raw["inputs"][k] for k in self.adapter.static if k in raw["inputs"]}
        numbers = {k for k, v in config.items() if is_number(v)} - {*self.adapter.static}
        self.numbers = {k: float(config[k]) for k in numbers}
        self.config = {k: v for k, v in config.items() if k not in numbers}
        arrays = {k for k, v in inputs.items() if isinstance(v, np.ndarray | float)}
        self.constants = {k: v for k, v in inputs.items() if k not in arrays} | static
        self.inputs = {k: inputs[k] for k in arrays}
        wrt = raw["grad_wrt"] if precision == "float64" else []
        self.wrt = {k: self.inputs.pop(k) for k in wrt}

    def key(self):
        """Cases of one key share a compiled program."""
        shapes = jax.tree.map(
            lambda x: (np.shape(x), str(np.asarray(x).dtype)),
            (self.wrt, self.inputs, self.numbers),
        )
        call = self.adapter.call
        parts = [call.__module__, call.__name__, self.config, self.constants, shapes]
        return json.dumps(parts, sort_keys=True, default=repr)

    def run(self):
        """Outputs by the golden files' names, and the gradients of their sum."""

        def total(wrt, inputs, numbers):
            out = self.adapter.call({**self.config, **numbers}, **wrt, **inputs, **self.constants)
            if isinstance(out, dict):
                out = {f"out.{k}": v for k, v in out.items()}
            elif isinstance(out, tuple):
                out = {f"out.{i}": v for i, v in enumerate(out)}
            else:
                out = {"out": out}
            floats = [jnp.sum(v) for v in out.values() if jnp.issubdtype(v.dtype, jnp.floating)]
            return sum(floats), out

        def program(wrt, inputs, numbers):
            if not wrt:
                return total(wrt, inputs, numbers)[1], {}
            (_, out), gradient = jax.value_and_grad(total, has_aux=True)(wrt, inputs, numbers)
            return out, gradient

        key = self.key()
        if key not in PROGRAMS:
            PROGRAMS[key] = jax.jit(program)
        return jax.tree.map(np.asarray, PROGRAMS[key](self.wrt, self.inputs, self.numbers))

    def raises(self):
        """Asserts an error, with the config's numbers known as a user's are."""
        with pytest.raises((TypeError, ValueError)):
            self.adapter.call(
                {**self.config, **self.numbers}, **self.wrt, **self.inputs, **self.constants
            )


PROGRAMS = {}


def assert_near(actual, expected, precision, what, yardstick=None, rtol=0.0, ours=False):
    """Equal where the reference is finite, finite where it is not; NaN where we say so."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape, what
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    assert actual.dtype == precision, what
    is_nan = np.isnan(expected) if ours else np.zeros(expected.shape, bool)
    assert (np.isfinite(actual) | is_nan).all(), what
    assert np.isnan(actual[is_nan]).all(), what
    tolerance = ATOL[precision] + max(RTOL[precision], rtol) * np.abs(expected)
    if yardstick is not None:
        tolerance = np.fmax(tolerance, 4 * np.abs(yardstick - expected))
    bad = np.isfinite(expected) & ~(np.abs(actual - expected) <= tolerance)
    assert not bad.any(), f"{what}: {actual[bad]} is not {expected[bad]}"


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_replay(path, precision, record_property):
    counts = Counter()
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", precision == "float64")
    try:
        for raw, expected in read(path):
            counts[check(raw, expected, precision)] += 1
    finally:
        jax.config.update("jax_enable_x64", before)
    record_property("golden replay", (precision, dict(counts)))
    assert counts.total() > 0


def check(raw, expected, precision):
    """Asserts a case and says in which of the three ways it was answered."""
    name = raw["name"]
    file, _, slug = name.partition("/")
    bare = slug.partition("_")[2]  # names a case, unless several of a file share it
    reason, answer = DIFFERENCES.get((file, slug)) or DIFFERENCES.get((file, bare), (None, None))
    case = Case(raw, precision)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ignored labels in a mean, on purpose
        if answer == RAISES or (reason is None and "error" in expected):
            case.raises()
            return "ours" if reason else "error"
        out, gradients = case.run()
    what = f"{name} ({reason})" if reason else name
    step = {} if "error" in expected else expected["steps"][0]
    outputs, yardsticks = step.get("outputs", {}), step.get("outputs32", {})
    factor, rtol = 1.0, 0.0
    if isinstance(answer, Instead):
        outputs = answer.outputs(raw["cfg"], raw["inputs"], outputs)
        yardsticks, factor = {}, answer.gradient
    elif isinstance(answer, Rounding):
        rtol, factor = answer.rtol, None
    assert out.keys() == outputs.keys(), what
    for key, value in outputs.items():
        yardstick = yardsticks.get(key) if precision == "float32" else None
        ours = isinstance(answer, Instead)
        assert_near(out[key], value, precision, f"{what} {key}", yardstick, rtol, ours)
    for key, value in gradients.items():
        assert np.isfinite(value).all(), f"{what} gradient of {key}"
        if factor is not None:
            slope = factor * step["grads"][key]
            assert_near(value, slope, precision, f"{what} gradient of {key}")
    return "ours" if reason else "equal"


def test_every_file_has_an_adapter_and_every_difference_a_case():
    assert sorted(ADAPTERS) == [path.stem for path in FILES]
    names = set()
    for path in FILES:
        slugs = [case["name"].partition("/")[2] for case, _ in read(path)]
        names |= {(path.stem, slug) for slug in slugs}
        names |= {(path.stem, slug.partition("_")[2]) for slug in slugs}
    assert not DIFFERENCES.keys() - names
