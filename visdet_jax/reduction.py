"""Weight, reduction and avg_factor: what happens to the values of every loss, written once."""

import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypedDict, overload

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import check_array
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Number
from visdet_jax.core.jitted import jitted

Reduction = Literal["none", "mean", "sum"]
REDUCTIONS: tuple[str, ...] = typing.get_args(Reduction)
# mmdet adds float32's eps to every avg_factor, in float64 too.
AVG_FACTOR_EPS = float(np.finfo(np.float32).eps)

P = ParamSpec("P")


def reduce_loss(loss: jax.Array, reduction: str) -> jax.Array:
    """The values as they are ("none"), their mean (0 of nothing) or their sum."""
    return weight_reduce_loss(loss, reduction=reduction)


def weight_reduce_loss(
    loss: jax.Array,
    weight: jax.Array | None = None,
    reduction: str = "mean",
    avg_factor: jax.Array | float | None = None,
) -> jax.Array:
    """Weights the values of a loss, then reduces them.

    Args:
      loss: values, any shape. Half floats are summed in float32.
      weight: of the values' shape, or of its leading part such as (N,) against (N, C), which
        counts for the rest, or with axes of size 1 such as (N, 1). A value of weight 0 adds
        exactly 0, to the gradient too, even if it is NaN.
      reduction: "mean" divides the sum by the number of values (not by the sum of weights);
        "sum"; "none" keeps the shape.
      avg_factor: a number to divide the sum by in place of the number of values, plus 1.2e-7.
        A batch's number of positives, say. Without effect under "none".
    Returns: a scalar, or values under "none"; float32, or float64 for float64 values.
    Raises: ValueError for another reduction, avg_factor with "sum", an avg_factor that is no
      scalar, and a weight whose shape does not fit.
    """
    check_reduction(reduction, avg_factor)
    loss = loss.astype(compute_dtype(loss=loss))
    if weight is not None:
        weight = spread_weight(weight, loss.shape).astype(loss.dtype)
        loss = jnp.where(weight == 0, 0, loss) * weight
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if avg_factor is None:
        return total / max(loss.size, 1)
    return total / (as_dtype(loss.dtype, avg_factor) + AVG_FACTOR_EPS)


def check_reduction(reduction: str, avg_factor: jax.Array | float | None) -> None:
    """Raises a ValueError for another reduction and an avg_factor that it cannot be used with."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if avg_factor is None or reduction == "none":
        return
    if reduction == "sum":
        raise ValueError('avg_factor can not be used with reduction="sum"')
    shape = jnp.shape(avg_factor)
    if shape:
        raise ValueError(f"avg_factor must be a number, got an array of shape {shape}")


def spread_weight(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`weight` with as many axes as `shape`, so that (N,) counts for the rows of (N, C)."""
    check_array("weight", weight)
    leading = weight.ndim > 0 and weight.shape == shape[: weight.ndim]
    ones = weight.ndim == len(shape) and all(
        w in (1, n) for w, n in zip(weight.shape, shape, strict=True)
    )
    if not (leading or ones):
        raise ValueError(
            f"weight {weight.shape} does not fit values {shape}: give one weight a value, "
            f"or one a row {shape[:1]}"
        )
    return weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))


def weight_without(
    ignored: jax.Array, weight: jax.Array | None, shape: tuple[int, ...]
) -> jax.Array:
    """`weight`, or ones, with 0 where `ignored` (a mask whose axes are those of `shape` or 1)."""
    kept = jnp.ones_like(ignored, jnp.float32) if weight is None else spread_weight(weight, shape)
    return jnp.where(ignored, 0, kept)


def zero_where_unweighted(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` with 0 wherever its weight is 0: what stood there, NaN say, is never computed with.

    On the inputs, because a NaN that a formula has read is in its gradient whatever is done to
    its value.
    """
    return jnp.where(spread_weight(weight, x.shape) == 0, 0, x)


class Reduce(TypedDict, total=False):
    """The keywords by which the values of every loss are reduced; see `weight_reduce_loss`."""

    reduction: Reduction
    avg_factor: Number | None


class WeightedLoss(Protocol[P]):
    """A loss as `weighted_loss` makes it: the formula's hyperparameters, and a weight."""

    __name__: str

    def __call__(
        self,
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None = None,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> jax.Array: ...


@overload
def weighted_loss(
    formula: Callable[Concatenate[jax.Array, jax.Array, P], jax.Array],
) -> WeightedLoss[P]: ...


@overload
def weighted_loss(
    *,
    derivative: Callable[..., jax.Array] | None = None,
    axis: int | slice | None = None,
    weight_of_values: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    static: Sequence[str] = (),
    on_gpu: tuple[Callable[..., jax.Array], Callable[..., jax.Array]] | None = None,
) -> Callable[[Callable[Concatenate[jax.Array, jax.Array, P], jax.Array]], WeightedLoss[P]]: ...


def weighted_loss(
    formula: Any = None,
    *,
    derivative: Callable[..., jax.Array] | None = None,
    axis: int | slice | None = None,
    weight_of_values: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    static: Sequence[str] = (),
    on_gpu: tuple[Callable[..., jax.Array], Callable[..., jax.Array]] | None = None,
) -> Any:
    """Decorator that makes a loss of a formula: adds the weight, the reduction and the jit.

      @weighted_loss
      def log_cosh_loss(pred, target, *, scale: Positive = 1.0, **reduce: Unpack[Reduce]):
          return jnp.log(jnp.cosh((pred - target) / scale))

    The formula takes pred, target and hyperparameters, and returns values whose shape is a leading
    part of pred's. It gets pred and target as floats of one type (float64 where one of them is,
    else float32), with zeros in the rows of weight 0. A hyperparameter is a number or a tuple of
    numbers, which come in that type too, a string, a bool or None; annotations with a range or
    with choices are checked (see `core.hyperparameters`). `**reduce` tells type checkers that the
    loss takes `reduction` and `avg_factor`; the formula never gets them.

    The loss has the signature
    `(pred, target, weight=None, *, <hyperparameters>, reduction="mean", avg_factor=None)`, and its
    gradient has the inputs' types.

    Args:
      formula: `(pred, target, *, <hyperparameters>) -> values`.
      derivative: The derivative of the formula by pred, with the same arguments and of pred's
        shape. Without it autodiff finds the gradient, and keeps more arrays; see `closed_form`.
      axis: The axis of pred, or a slice of its axes, that a formula with a derivative sums. None
        for an elementwise formula.
      weight_of_values: `(pred, weight) -> weight`, for a loss whose weight may have another shape
        than its values.
      static: Names of hyperparameters that are known when the program is compiled, such as a
        number of bins.
      on_gpu: The formula and its derivative as GPUs get them; see `closed_form`.

    Raises: TypeError at decoration for a formula with a parameter that could not be passed on.
    """
    if formula is None:
        return functools.partial(
            weighted_loss,
            derivative=derivative,
            axis=axis,
            weight_of_values=weight_of_values,
            static=static,
            on_gpu=on_gpu,
        )
    hyperparameters = _hyperparameters(formula, static)
    defaults = {p.name: p.default for p in hyperparameters if p.default is not p.empty}

    def loss(
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None = None,
        *,
        reduction: Reduction = "mean",
        avg_factor: Number | None = None,
        **options: Any,
    ) -> jax.Array:
        dtype = compute_dtype(pred=pred, target=target)
        pred, target = pred.astype(dtype), target.astype(dtype)
        options = defaults | options
        kept = {name: x for name, x in options.items() if name in static}
        options = jax.tree.map(
            lambda x: x if isinstance(x, str | bool) else as_dtype(dtype, x), options
        )
        options |= kept
        if weight is not None:
            check_array("weight", weight)
            if weight_of_values is not None:
                weight = weight_of_values(pred, weight)
        if derivative is not None:
            formulas = (formula, derivative, *(on_gpu or ()))
            values = _in_closed_form(formulas, axis, pred, target, weight, options)
            return weight_reduce_loss(values, None, reduction, avg_factor)
        if weight is not None:
            pred = zero_where_unweighted(pred, weight)
            target = zero_where_unweighted(target, weight)
        values = formula(pred, target, **options)
        return weight_reduce_loss(values, weight, reduction, avg_factor)

    pred, target, weight, *common = inspect.signature(loss).parameters.values()
    functools.update_wrapper(loss, formula)
    parameters = [pred, target, weight, *hyperparameters, *common[:-1]]
    signature = inspect.Signature(parameters, return_annotation=jax.Array)
    loss.__signature__ = signature  # type: ignore[attr-defined]
    return jitted(static=static)(loss)


def _hyperparameters(formula: Callable[..., Any], static: Sequence[str]) -> list[inspect.Parameter]:
    """The parameters of a formula after pred and target, as keywords of the loss."""
    name = getattr(formula, "__name__", repr(formula))
    first, *others = inspect.signature(formula).parameters.values()
    if not others or others[0].kind not in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD):
        raise TypeError(f"{name}: a formula takes pred and target, and then its hyperparameters")
    found = []
    for parameter in others[1:]:
        if parameter.kind == parameter.VAR_KEYWORD:
            continue  # **reduce
        where = f"{name}: the hyperparameter {parameter.name!r}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{where} cannot be given by its name")
        if parameter.name in ("weight", "reduction", "avg_factor"):
            raise TypeError(f"{where} has the name of an argument that weighted_loss adds")
        if type(parameter.default) is int and parameter.name not in static:
            raise TypeError(
                f"{where} has the default {parameter.default}: numbers are traced, so write "
                f"{float(parameter.default)}, or static=({parameter.name!r},) for a count"
            )
        found.append(parameter.replace(kind=parameter.KEYWORD_ONLY))
    return found


def _in_closed_form(
    formulas: Sequence[Callable[..., jax.Array]],
    axis: int | slice | None,
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None,
    options: dict[str, Any],
) -> jax.Array:
    """The weighted values of a formula, its derivative and, if there are, both as GPUs get them."""
    static = {k: v for k, v in options.items() if v is None or isinstance(v, str | bool | int)}
    names = [k for k in options if k not in static]

    def with_names(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return lambda pred, target, *numbers: function(
            pred, target, **dict(zip(names, numbers, strict=True)), **static
        )

    summed = () if axis is None else np.atleast_1d(np.arange(pred.ndim)[axis]).tolist()
    if weight is not None:
        shape = tuple(n for i, n in enumerate(pred.shape) if i not in summed)
        weight = spread_weight(weight, shape).astype(pred.dtype)
    value, derivative, *on_gpu = map(with_names, formulas)
    pair = (on_gpu[0], on_gpu[1]) if on_gpu else None
    weighted = closed_form(value, derivative, tuple(summed), on_gpu=pair)
    return weighted(weight, pred, target, *(options[name] for name in names))
