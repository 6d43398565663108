"""What belongs to a registered class: rows, exports, ranges, and every field described.

Each failure says what to write, and where.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import visdet_jax
from cases import CASES
from settings import defaults, number_fields, rules
from visdet_jax import LOSSES, Loss
from visdet_jax.core.docstrings import parse
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors import HEADS

PACKAGE = Path(visdet_jax.__file__).parent
LOSS_PAGE = (PACKAGE / "losses" / "README.md").read_text()
DETECTOR_PAGE = (PACKAGE / "detectors" / "README.md").read_text()
FUNCTIONS = [value for value in vars(visdet_jax).values() if inspect.isfunction(value)]
every_class = pytest.mark.parametrize("name", sorted(LOSSES))


@every_class
def test_it_has_a_row_of_inputs(name):
    assert name in CASES, f"add a row for {name!r} to tests/cases.py: the laws need inputs for it"


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_row_is_of_a_registered_class(name):
    assert name in LOSSES, (
        f"tests/cases.py has a row for {name!r}: register the class with "
        f"@LOSSES.register_module(), or delete the row"
    )
    is_loss = issubclass(LOSSES[name], Loss)
    assert is_loss != (CASES[name][0].is_metric or CASES[name][0].is_bare), (
        f"set is_metric or is_bare of {name!r} in tests/cases.py where the class is no Loss, "
        "and there only"
    )


@every_class
def test_it_is_exported(name):
    assert getattr(visdet_jax, name, None) is LOSSES[name], (
        f"export {name!r} in visdet_jax/__init__.py"
    )


@every_class
def test_its_functions_are_named_and_exported(name):
    functions = LOSSES[name].functions
    assert functions, f"name the function of {name}: class {name}(Loss, function=...)"
    for function in functions:
        own = function.__name__
        assert getattr(visdet_jax, own, None) is function, (
            f"export {own!r} in visdet_jax/__init__.py"
        )


@every_class
def test_the_page_of_losses_has_a_row_for_it(name):
    assert re.search(rf"^\| [^|]*`{name}`", LOSS_PAGE, re.MULTILINE), (
        f"add a row for {name!r} to the tables of losses in visdet_jax/losses/README.md"
    )


@pytest.mark.parametrize("name", sorted(HEADS))
def test_the_page_of_detectors_has_a_row_for_each_head(name):
    assert re.search(rf"^\| [^|]*`{name}`", DETECTOR_PAGE, re.MULTILINE), (
        f"add a row for {name!r} to a table of heads in visdet_jax/detectors/README.md"
    )


def test_the_page_of_detectors_names_each_assigner():
    functions = [name for name in vars(visdet_jax.detectors) if name.endswith("_assign")]
    assert len(functions) >= 9
    missing = [name for name in functions if f"`{name}`" not in DETECTOR_PAGE]
    assert not missing, f"name {missing} in the table of parts in visdet_jax/detectors/README.md"


@every_class
def test_every_field_is_described(name):
    cls = LOSSES[name]
    described = parse(cls.__doc__).arguments
    for field in dataclasses.fields(cls):
        text = described.get(field.name)
        where = f"in the Args of {name}, or of the function that has this argument"
        assert text, f"describe {field.name!r} {where}"
        assert text[0].isupper() or not text[0].isalpha(), (
            f"begin the description of {field.name!r} with a capital letter {where}"
        )
        assert text.endswith((".", "!", ")")), (
            f"end that of {field.name!r} with a full stop {where}"
        )


@every_class
def test_the_signature_shows_the_fields(name):
    shown = inspect.signature(LOSSES[name]).parameters
    fields = dataclasses.fields(LOSSES[name])
    assert list(shown) == [field.name for field in fields]
    for field in fields:
        is_required = field.default is dataclasses.MISSING
        default = inspect.Parameter.empty if is_required else field.default
        assert shown[field.name].default == default, f"{name}: the default of {field.name!r}"
        assert shown[field.name].kind == inspect.Parameter.KEYWORD_ONLY


@every_class
def test_class_and_function_have_the_same_defaults(name):
    cls, own = LOSSES[name], defaults(LOSSES[name])
    modules = {base.__module__ for base in cls.__mro__ if issubclass(base, FrozenModule)}
    beside = [f for f in FUNCTIONS if inspect.unwrap(f).__module__ in modules]
    for function in {*cls.functions, *beside}:
        for parameter in inspect.signature(function).parameters.values():
            default = own.get(parameter.name, parameter.empty)
            if parameter.empty in (default, parameter.default):
                continue
            # None may stand for a number that the class gives, and (1,) for 1 in `topk`.
            if None in (default, parameter.default) or default == (parameter.default,):
                continue
            assert parameter.default == default, (
                f"give {parameter.name!r} of {name} and of {function.__name__} the same default"
            )


@every_class
def test_every_number_says_what_it_may_be(name):
    """A field without a range is one that nobody thought of: `Finite` where any number will do."""
    found = rules(LOSSES[name])
    for field in number_fields(LOSSES[name]):
        if field != "loss_weight":
            assert field in found, (
                f"annotate {field!r} of {name}'s function with what it may be: "
                "Positive, Fraction, Exponent, Finite ... of visdet_jax/core/hyperparameters.py"
            )
