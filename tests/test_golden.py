"""Replays the reference's cases: value and gradient in float64, values in float32."""

import json
import warnings
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax
from golden.differences import DIFFERENCES, OTHER_DEFAULTS, RAISES
from golden.read_golden import read

FILES = sorted((Path(__file__).parent / "golden").glob("*.npz"))
RTOL = {"float64": 1e-9, "float32": 1e-4}
ATOL = {"float64": 1e-10, "float32": 1e-5}


# Most of the time is compilation: LLVM's optimizations are left to the programs of other tests.
QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def is_number(x):
    return isinstance(x, int | float) and not isinstance(x, bool)


def is_array(x):
    """An array, or the (label, score) of a quality focal loss."""
    if isinstance(x, tuple):
        return all(map(is_array, x))
    return isinstance(x, np.ndarray)


class Case:
    """A golden case as a call: what is static, what is traced, what is differentiated."""

    def __init__(self, case, precision):
        cast = np.float64 if precision == "float64" else np.float32

        def to_array(x):
            if isinstance(x, tuple):
                return tuple(map(to_array, x))
            return x.astype(cast if x.dtype.kind == "f" else np.int32)

        self.type, self.method = case["cfg"]["type"], case["method"]
        inputs = {k: to_array(v) if is_array(v) else v for k, v in case["inputs"].items()}
        self.positional = [k for k in ("pred", "target") if k in inputs]
        settings = {k: v for k, v in case["cfg"].items() if k != "type"}
        # Numbers are traced, so that cases share programs; these two are shapes.
        traced = {k for k, v in settings.items() if is_number(v)} - {"num_classes", "topk"}
        self.static = {k: v for k, v in settings.items() if k not in traced}
        self.static_inputs = {
            k: v for k, v in inputs.items() if k == "topk" or not (is_array(v) or is_number(v))
        }
        self.arguments = {
            "settings": {k: settings[k] for k in traced},
            "inputs": {k: v for k, v in inputs.items() if k not in self.static_inputs},
        }
        if (
            "random" in case["tags"]
        ):  # the reference's own generator; what is stored does not depend on it
            self.arguments["inputs"]["key"] = jax.random.PRNGKey(0)
        self.wrt = {k: self.arguments["inputs"].pop(k) for k in case["grad_wrt"]}

    def key(self):
        """Cases of one key share a compiled program."""
        shapes = jax.tree.map(
            lambda x: (np.shape(x), str(np.asarray(x).dtype)), (self.wrt, self.arguments)
        )
        return json.dumps(
            [self.type, self.method, self.static, self.static_inputs, shapes], sort_keys=True
        )

    def call(self, wrt, settings, inputs):
        """The outputs by the golden files' names."""
        inputs = {**wrt, **inputs, **self.static_inputs}
        arguments = [inputs.pop(name) for name in self.positional]
        if self.type[0].islower():
            function = getattr(visdet_jax, self.type)
        else:
            function = visdet_jax.build_loss({"type": self.type, **self.static, **settings})
            function = getattr(function, self.method) if self.method else function
        out = function(*arguments, **inputs)
        if isinstance(out, dict):
            return {f"out.{k}": v for k, v in out.items()}
        if isinstance(out, tuple | list):
            return {f"out.{i}": v for i, v in enumerate(out)}
        return {"out": out}

    def program(self):
        """Jitted: outputs, and the gradients of their sum."""

        def total(wrt, settings, inputs):
            out = self.call(wrt, settings, inputs)
            return sum(jnp.sum(v) for v in out.values()), out

        def run(wrt, settings, inputs):
            if not wrt:
                return self.call(wrt, settings, inputs), {}
            (_, out), gradient = jax.value_and_grad(total, has_aux=True)(wrt, settings, inputs)
            return out, gradient

        return jax.jit(run, compiler_options=QUICK_COMPILE)

    def raises(self):
        """Asserts an error, with the config's numbers known as a user's are."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises((TypeError, ValueError)):
                self.call(self.wrt, **self.arguments)

    def run(self, programs):
        program = programs.setdefault(self.key(), self.program())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated spellings and ignore_index, on purpose
            out, gradient = program(self.wrt, **self.arguments)
        return jax.tree.map(np.asarray, (out, gradient))


def assert_near(actual, expected, precision, what, yardstick=None):
    """Equal where the reference is finite, finite where it is not."""
    assert actual.shape == np.shape(expected), what
    assert actual.dtype == precision, what
    finite = np.isfinite(expected)
    assert np.isfinite(actual).all(), what
    tolerance = ATOL[precision] + RTOL[precision] * np.abs(expected)
    if yardstick is not None:
        tolerance = np.fmax(tolerance, 4 * np.abs(yardstick - expected))
    bad = finite & ~(np.abs(actual - expected) <= tolerance)
    assert not bad.any(), f"{what}: {actual[bad]} is not {np.asarray(expected)[bad]}"


# The programs outlive a file: visdet's and mmdet's cases are mostly the same calls.
PROGRAMS = {"float64": {}, "float32": {}}


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
    raw["inputs"] = OTHER_DEFAULTS.get(raw["loss"], {}) | raw["inputs"]
    name, case = raw["name"], Case(raw, precision)
    if precision == "float32":
        case.arguments["inputs"] |= case.wrt
        case.wrt = {}
    programs = PROGRAMS[precision]
    difference = DIFFERENCES.get((raw["loss"], name.partition("/")[2].partition("_")[2]))
    if difference:
        reason, answer = difference
        if answer == RAISES:
            case.raises()
        else:
            check_our_answer(answer, raw, case.run(programs)[0], precision, f"{name} ({reason})")
        return "ours"
    if "error" in expected:
        case.raises()
        return "error"
    (step,) = expected["steps"]
    out, gradient = case.run(programs)
    assert out.keys() == step["outputs"].keys(), name
    for key, value in step["outputs"].items():
        yardstick = step["outputs32"][key] if precision == "float32" else None
        assert_near(out[key], value, precision, f"{name} {key}", yardstick)
    for key, value in gradient.items():
        assert_near(value, step["grads"][key], precision, f"{name} gradient of {key}")
    return "equal"


def check_our_answer(answer, raw, out, precision, what):
    """Asserts the value of a case that the reference answers otherwise."""

    def values(inputs=None):
        inputs = raw["inputs"] if inputs is None else inputs
        kept = {
            k: v
            for k, v in inputs.items()
            if k not in ("weight", "avg_factor", "reduction", "reduction_override")
        }
        plain = {**raw, "grad_wrt": []}
        if raw["loss"][0].islower():
            kept["reduction"] = "none"
        else:
            plain["cfg"] = {**raw["cfg"], "reduction": "none", "loss_weight": 1.0}
        return Case({**plain, "inputs": kept}, precision).run(PROGRAMS[precision])[0]["out"]

    inputs = {
        k: v.astype(np.float64)
        if is_array(v) and not isinstance(v, tuple) and v.dtype.kind == "f"
        else v
        for k, v in raw["inputs"].items()
    }
    expected = answer(inputs, values)
    expected = expected if isinstance(expected, list) else [expected]
    factor = raw["cfg"].get("loss_weight", 1.0)
    assert len(out) == len(expected), what
    for actual, value in zip(out.values(), expected, strict=True):
        np.testing.assert_allclose(
            actual, factor * np.asarray(value), RTOL[precision], ATOL[precision], err_msg=what
        )
        assert actual.shape == np.shape(value), what
