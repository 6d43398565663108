"""Replays the golden cases of later years: value and gradient in float64, value in float32."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adapters import ADAPTERS, DIFFERENCES, RAISES, Instead, Rounding
from golden.read_golden import read
from golden.replay import files_and_precisions, replay_file

FILES = sorted((Path(__file__).parents[1] / "golden" / "later").glob("*.npz"))
RTOL = {"float64": 1e-6, "float32": 1e-4}
ATOL = {"float64": 1e-10, "float32": 1e-5}


def is_number(x):
    return isinstance(x, int | float) and not isinstance(x, bool)


class Case:
    """A golden case as a call: what is static, traced, differentiated."""

    def __init__(self, raw, precision):
        def to_array(x):
            return x.astype(precision if x.dtype.kind == "f" else np.int32)

        self.adapter = ADAPTERS[raw["name"].partition("/")[0]]
        inputs = {
            k: to_array(v) if isinstance(v, np.ndarray) else v for k, v in raw["inputs"].items()
        }
        config = {k: v for k, v in raw["cfg"].items() if k != "type"}
        # Arrays and numbers are traced; a tuple of numbers is given as users write it.
        self.leaves, self.tree = jax.tree.flatten_with_path((config, inputs), is_leaf=is_none)
        self.traced = {
            i: float(x) if is_number(x) else x
            for i, (path, x) in enumerate(self.leaves)
            if isinstance(x, np.ndarray) or (is_number(x) and not self.is_static(path))
        }
        wrt = raw["grad_wrt"] if precision == "float64" else []
        self.wrt = {k: inputs[k] for k in wrt}

    def is_static(self, path):
        is_in_sequence = isinstance(path[-1], jax.tree_util.SequenceKey)
        return is_in_sequence or any(
            getattr(part, "key", None) in self.adapter.static for part in path
        )

    def key(self):
        """Cases of one key share a compiled program."""
        static = [x for i, (_, x) in enumerate(self.leaves) if i not in self.traced]
        shapes = {i: (np.shape(x), str(np.asarray(x).dtype)) for i, x in self.traced.items()}
        return self.adapter.call, str(self.tree), repr(static), repr(shapes), tuple(self.wrt)

    def call(self, wrt, traced):
        """The outputs by the golden files' names."""
        leaves = [traced.get(i, x) for i, (_, x) in enumerate(self.leaves)]
        config, inputs = jax.tree.unflatten(self.tree, leaves)
        out = self.adapter.call(config, **{**inputs, **wrt})
        if isinstance(out, dict):
            return {f"out.{k}": v for k, v in out.items()}
        if isinstance(out, tuple):
            return {f"out.{i}": v for i, v in enumerate(out)}
        return {"out": out}

    def run(self):
        """Outputs, and the gradients of their sum."""
        if not (self.wrt or self.adapter.whole):
            # The functions are jitted themselves, and share their programs more widely.
            return jax.tree.map(np.asarray, (self.call({}, self.traced), {}))

        def total(wrt, traced):
            out = self.call(wrt, traced)
            floats = [jnp.sum(v) for v in out.values() if jnp.issubdtype(v.dtype, jnp.floating)]
            return sum(floats), out

        def program(wrt, traced):
            if not wrt:
                return self.call({}, traced), {}
            (_, out), gradient = jax.value_and_grad(total, has_aux=True)(wrt, traced)
            return out, gradient

        key = self.key()
        if key not in PROGRAMS:
            PROGRAMS[key] = jax.jit(program)
        return jax.tree.map(np.asarray, PROGRAMS[key](self.wrt, self.traced))

    def raises(self):
        """Asserts an error, with the config's numbers known as a user's are."""
        with pytest.raises((TypeError, ValueError)):
            self.call(self.wrt, self.traced)


def is_none(x):
    return x is None


PROGRAMS = {}


@pytest.fixture(scope="module", autouse=True)
def programs_go_in_the_end():
    yield
    PROGRAMS.clear()


def assert_near(actual, expected, precision, what, yardstick=None, rtol=0.0, ours=False):
    """Equal where the original is finite, finite where it is not; NaN where we say so."""
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


@pytest.mark.parametrize(
    ("path", "precision"), files_and_precisions(FILES, ["dfine.DDF", "mmrotate.GDLoss"])
)
def test_replay(path, precision, request):
    replay_file(path, precision, check, request)


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
            gradient = factor * step["grads"][key]
            assert_near(value, gradient, precision, f"{what} gradient of {key}")
    return "ours" if reason else "equal"


def test_every_file_has_an_adapter_and_every_difference_a_case():
    assert sorted(ADAPTERS) == [path.stem for path in FILES]
    names = set()
    for path in FILES:
        slugs = [case["name"].partition("/")[2] for case, _ in read(path)]
        names |= {(path.stem, slug) for slug in slugs}
        names |= {(path.stem, slug.partition("_")[2]) for slug in slugs}
    assert not DIFFERENCES.keys() - names
