"""`checked`: losses and heads that look at the values they are given, and raise."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from visdet_jax.core.devices import replicated
from visdet_jax.core.rules import BOXES, Expected, inverted, widened
from visdet_jax.core.warn import warn


def checked(loss: Any) -> "Checked":
    """The same loss, or head, that raises on values which make no sense.

    Called with the same arguments it gives the same result, or raises. Jitted code cannot look at
    values, so that a wrong label or box costs NaN there, or nothing. The message names the loss,
    the argument, the first bad row and its value:

      >>> checked(FocalLoss())(jnp.zeros((4, 80)), jnp.array([3, 80, 81, 0]))
      FocalLoss: target[2] is 81: must be a class from 0 to 80 (80 is background), or ...

    Outside jit it raises by itself. Inside jit use JAX's own transformation:

      >>> @jax.jit
      ... def step(params, batch):
      ...     return checked(loss)(network(params, batch.images), batch.labels)
      >>> error, value = checkify.checkify(step)(params, batch)  # jax.experimental.checkify
      >>> error.throw()

    (Without it JAX does not compile the step, and says so.) It works under vmap, grad and scan as
    well. Nothing is added to a loss that is not wrapped.

    It looks at the rows whose weight is not 0 and whose label is not ignored:
    - predictions are finite, boxes not inverted, probabilities in [0, 1];
    - rotated boxes are finite, with no width or height below 0;
    - labels are in range (-1 and `ignore_index` mark padding, or background where the loss says
      so), scores and soft targets in [0, 1], boxes finite and not inverted (where more than a
      quarter are inverted, the message asks whether they are x, y, w, h);
    - weights are finite and not negative, avg_factor is finite and above 0;
    - outputs of a network are finite, boxes of a DETR in [0, 1]; the maps of the finest level, at
      its stride, cover the images; ground truth boxes are finite, not inverted and not outside the
      image; labels are below num_classes (negative ones mark padding).

    It warns where all logits are in [0, 1] and not all 0, which look like probabilities; where all
    coordinates of boxes in pixels are, which look like fractions of the image; where more than a
    quarter of the boxes reach beyond their image by a tenth of it, as with x and y exchanged; and
    where no image of a head's batch has ground truth.

    Returns: a `Checked`, with the methods of what it wraps.
    Raises: TypeError for what is neither a loss nor a head. At the call ValueError
      (checkify.JaxRuntimeError).
    """
    if not hasattr(loss, "expects"):
        raise TypeError(
            "checked takes a loss or a head, as build_loss and build_head make them, got "
            f"{getattr(loss, '__name__', None) or repr(loss)}"
        )
    return Checked(loss)


@dataclass(frozen=True)
class Checked:
    """A loss or a head whose `__call__`, `loss` and `update` check their arguments."""

    wrapped: Any

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._checked(self.wrapped, *args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask before there is anything wrapped.
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def loss(self, *args: Any, **options: Any) -> Any:
        """The `loss` of the wrapped head, with its arguments checked."""
        return self._checked(self.wrapped.loss, *args, **options)

    def update(self, state: Any, *args: Any, **options: Any) -> Any:
        """The `update` of the wrapped loss or head, with its arguments checked."""
        return self._checked(functools.partial(self.wrapped.update, state), *args, **options)

    def _checked(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result = call(*args, **options)  # First: shapes and types have errors of their own.
        for argument in self.wrapped.expects(*args, **options):
            if argument.x is not None and np.size(argument.x):
                _check(type(self.wrapped).__name__, argument)
        return result


def _check(owner: str, argument: Expected) -> None:
    """Raises for the first item of an argument that is read and breaks its rule."""
    name, x, rule, used = argument
    x = widened(jax.lax.stop_gradient(replicated(x)))
    bad, used = rule.bad(x), jnp.asarray(True if used is None else replicated(used))
    bad &= used
    index = jnp.argmax(bad.reshape(-1))
    place = dict(zip("ijklmn", jnp.unravel_index(index, bad.shape), strict=False))
    where = f"[{', '.join(f'{{{axis}}}' for axis in place)}]" if place else ""
    found: dict[str, Any] = {"value": x.reshape(-1, *x.shape[bad.ndim :])[index], **place}
    what = f"{owner}: {name}{where} is {{value}}"
    if rule is BOXES:
        count = (bad & inverted(x)).sum()
        checkify.check(
            (count < 2) | (4 * count <= bad.size),
            f"{what}, and x2 < x1 or y2 < y1 in {{count}} of {bad.size} boxes: are they x, y, w, "
            "h? They must be x1, y1, x2, y2",
            count=count,
            **found,
        )
    checkify.check(~bad.any(), f"{what}: {rule.must}", **found)
    if rule.doubt:
        read = jnp.broadcast_to(used, bad.shape)
        _warn_if(rule.doubtful(x, read), f"{owner}: {rule.doubt.format(name=name)}")


def _warn_if(doubtful: jax.Array, message: str) -> None:
    """Warns where `doubtful` is true, inside jit when the program runs."""

    def tell(doubtful: Any) -> None:
        if doubtful:
            warn(message)

    if isinstance(doubtful, jax.core.Tracer):
        jax.debug.callback(tell, doubtful)
    else:
        tell(doubtful)
