"""Replays the original's cases: value, gradient and state in float64, no gradient in float32."""

import dataclasses
import json
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax
from golden.differences import DIFFERENCES, OTHER_DEFAULTS, RAISES, Rearranged
from golden.replay import files_and_precisions, replay_file
from visdet_jax import LOSSES

FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
RTOL = {"float64": 1e-9, "float32": 1e-4}
ATOL = {"float64": 1e-10, "float32": 1e-5}


def is_number(x):
    return isinstance(x, int | float) and not isinstance(x, bool)


def is_array(x):
    """An array, or the (label, score) of a quality focal loss."""
    if isinstance(x, tuple):
        return all(map(is_array, x))
    return isinstance(x, np.ndarray)


class Case:
    """A golden case, or a step of one, as a call: what is static, traced, differentiated."""

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
        if self.type in LOSSES:
            # Our defaults, said aloud: configs that give other numbers share programs.
            fields = dataclasses.fields(LOSSES[self.type])
            defaults = {f.name: f.default for f in fields if isinstance(f.default, float | str)}
            settings = {
                k: float(v) if isinstance(defaults.get(k), float) and is_number(v) else v
                for k, v in (defaults | settings).items()
            }
        if is_number(inputs.get("avg_factor")):
            inputs["avg_factor"] = float(inputs["avg_factor"])
        # Numbers are traced; these are shapes.
        shapes = {"num_classes", "topk", "bins", "momentum"}
        traced = {k for k, v in settings.items() if is_number(v)} - shapes
        self.static = {k: v for k, v in settings.items() if k not in traced}
        self.static_inputs = {
            k: v for k, v in inputs.items() if k == "topk" or not (is_array(v) or is_number(v))
        }
        self.arguments = {
            "settings": {k: settings[k] for k in traced},
            "inputs": {k: v for k, v in inputs.items() if k not in self.static_inputs},
        }
        if "random" in case["tags"]:
            # The original draws from its own generator; what is stored does not depend on it.
            self.arguments["inputs"]["key"] = jax.random.PRNGKey(0)
        wrt = case["grad_wrt"] if precision == "float64" else []
        self.wrt = {k: self.arguments["inputs"].pop(k) for k in wrt}

    def key(self):
        """Cases of one key share a compiled program."""
        shapes = jax.tree.map(
            lambda x: (np.shape(x), str(np.asarray(x).dtype)), (self.wrt, self.arguments)
        )
        return json.dumps(
            [self.type, self.method, self.static, self.static_inputs, shapes], sort_keys=True
        )

    def function(self, settings):
        if self.type[0].islower():
            return getattr(visdet_jax, self.type)
        loss = visdet_jax.build_loss({"type": self.type, **self.static, **settings})
        return getattr(loss, self.method) if self.method else loss

    def init(self):
        """The state before the first step, () for all that keep none."""
        function = self.function(self.arguments["settings"])
        return function.init() if isinstance(function, visdet_jax.Loss) else ()

    def call(self, wrt, settings, inputs, state):
        """The outputs by the golden files' names, and the next state."""
        inputs = {**wrt, **inputs, **self.static_inputs}
        arguments = [inputs.pop(name) for name in self.positional]
        function = self.function(settings)
        if isinstance(function, visdet_jax.Loss):
            out, state = function.update(state, *arguments, **inputs)
        else:
            out = function(*arguments, **inputs)
        if isinstance(out, dict):
            return {f"out.{k}": v for k, v in out.items()}, state
        if isinstance(out, tuple | list):
            return {f"out.{i}": v for i, v in enumerate(out)}, state
        return {"out": out}, state

    def program(self, state):
        """Compiled: outputs, the gradients of their sum, and the next state.

        A quarter of the programs are asked for in another way alone (an override for a reduction,
        a class for its like): what lowers to one text is compiled once.
        """

        def total(wrt, settings, inputs, state):
            out, state = self.call(wrt, settings, inputs, state)
            return sum(jnp.sum(v) for v in out.values()), (out, state)

        def run(wrt, **arguments):
            run_total = jax.value_and_grad(total, has_aux=True)
            (_, (out, state)), gradient = run_total(wrt, **arguments)
            return out, gradient, state

        # Unused arguments are kept, or one text could be two choices of them.
        lowered = jax.jit(run, keep_unused=True).lower(self.wrt, **self.arguments, state=state)
        text = lowered.as_text(), lowered.in_tree, lowered.out_tree
        if text not in COMPILED:
            COMPILED[text] = lowered.compile()
        return COMPILED[text]

    def raises(self):
        """Asserts an error, with the config's numbers known as a user's are."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises((TypeError, ValueError)):
                self.call(self.wrt, **self.arguments, state=self.init())

    def run(self, state):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated spellings and ignore_index, on purpose
            if self.wrt:
                key = self.key()
                if key not in PROGRAMS:
                    PROGRAMS[key] = self.program(state)
                result = PROGRAMS[key](self.wrt, **self.arguments, state=state)
            else:  # the functions are jitted themselves, and share their programs more widely
                out, state = self.call({}, **self.arguments, state=state)
                result = out, {}, state
        return jax.tree.map(np.asarray, result)


def replay(raw, precision):
    """Outputs and gradients of each step, by name, and the state after the last."""
    steps = [Case({**raw, "inputs": inputs}, precision) for inputs in steps_of(raw)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = steps[0].init()
    results = []
    for step in steps:
        out, gradient, state = step.run(state)
        results.append((out, gradient))
    return results, state._asdict() if state else {}


def steps_of(raw):
    return raw.get("steps", [raw["inputs"]])


def assert_near(actual, expected, precision, what, yardstick=None):
    """Equal where the original is finite, finite where it is not."""
    assert actual.shape == np.shape(expected), what
    assert actual.dtype == precision, what
    finite = np.isfinite(expected)
    assert np.isfinite(actual).all(), what
    tolerance = ATOL[precision] + RTOL[precision] * np.abs(expected)
    if yardstick is not None:
        tolerance = np.fmax(tolerance, 4 * np.abs(yardstick - expected))
    bad = finite & ~(np.abs(actual - expected) <= tolerance)
    assert not bad.any(), f"{what}: {actual[bad]} is not {np.asarray(expected)[bad]}"


# The programs outlive a golden file: visdet's and mmdet's cases are mostly the same calls.
PROGRAMS = {}  # by key
COMPILED = {}  # by text


@pytest.fixture(scope="module", autouse=True)
def programs_go_in_the_end():
    yield
    PROGRAMS.clear()
    COMPILED.clear()


@pytest.mark.parametrize(
    ("path", "precision"), files_and_precisions(FILES, ["mmdet.GIoULoss", "visdet.FocalLoss"])
)
def test_replay(path, precision, request):
    replay_file(path, precision, check, request)


def check(raw, expected, precision):
    """Asserts a case and says in which of the three ways it was answered."""
    raw["inputs"] = OTHER_DEFAULTS.get(raw["loss"], {}) | raw["inputs"]
    name = raw["name"]
    difference = DIFFERENCES.get((raw["loss"], name.partition("/")[2].partition("_")[2]))
    reason, answer = difference or (None, None)
    if answer == RAISES or (difference is None and "error" in expected):
        Case(raw, precision).raises()
        return "ours" if difference else "error"
    results, state = replay(raw, precision)
    if difference and not isinstance(answer, Rearranged):
        out = results[-1][0] | {f"state.{k}": v for k, v in state.items()}
        check_our_answer(answer, raw, out, precision, f"{name} ({reason})")
        return "ours"
    for inputs, (out, gradient), step in zip(
        steps_of(raw), results, expected["steps"], strict=True
    ):
        outputs, yardsticks = step["outputs"], step["outputs32"]
        if difference:
            outputs, yardsticks = (answer.rearrange(inputs, o) for o in (outputs, yardsticks))
        assert out.keys() == outputs.keys(), name
        for key, value in outputs.items():
            yardstick = yardsticks[key] if precision == "float32" else None
            assert_near(out[key], value, precision, f"{name} {key}", yardstick)
        for key, value in gradient.items():
            assert_near(value, step["grads"][key], precision, f"{name} gradient of {key}")
    assert state.keys() == expected["state"].keys(), name
    for key, value in expected["state"].items():
        assert_near(state[key], value, precision, f"{name} {key} after the last step")
    return "ours" if difference else "equal"


def check_our_answer(answer, raw, out, precision, what):
    """Asserts the value of a case that the original answers otherwise."""

    def values(inputs=None):
        inputs = raw["inputs"] if inputs is None else inputs
        kept = {
            k: v
            for k, v in inputs.items()
            if k not in ("weight", "avg_factor", "reduction", "reduction_override")
        }
        plain = {**raw, "grad_wrt": [], "inputs": kept}
        if raw["loss"][0].islower():
            kept["reduction"] = "none"
        else:
            plain["cfg"] = {**raw["cfg"], "reduction": "none", "loss_weight": 1.0}
        ((out, _),), _ = replay(plain, precision)
        return out["out"]

    def exact(inputs):
        return {
            k: v.astype(np.float64)
            if is_array(v) and not isinstance(v, tuple) and v.dtype.kind == "f"
            else v
            for k, v in inputs.items()
        }

    # Steps, of a loss that has them; the answer is then of the last.
    inputs = [*map(exact, raw["steps"])] if "steps" in raw else exact(raw["inputs"])
    expected = answer(inputs, values)
    if not isinstance(expected, dict):
        expected = expected if isinstance(expected, list) else [expected]
        expected = dict(zip(out, expected, strict=True))
    assert out.keys() == expected.keys(), what
    for key, value in expected.items():
        factor = raw["cfg"].get("loss_weight", 1.0) if key.startswith("out") else 1.0
        np.testing.assert_allclose(
            out[key], factor * np.asarray(value), RTOL[precision], ATOL[precision], err_msg=what
        )
        assert out[key].shape == np.shape(value), what
