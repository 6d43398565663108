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
from visdet_jax.core.rules import BOXES, inverted
from visdet_jax.core.warn import warn


def checked(loss: Any) -> "Checked":
    """The same loss, or head, that raises on values which make no sense.

    Called with the same arguments it gives the same result, or raises: jitted code cannot look at
    values, so a wrong label or box is a NaN there, or costs nothing. The message names the loss,
    the argument, the first row and its value:

      >>> checked(FocalLoss())(jnp.zeros((4, 80)), jnp.array([3, 80, 81, 0]))
      FocalLoss: target[2] is 81: must be a class from 0 to 80 (80 is background), or ...

    Outside jit it raises by itself. Inside jit use JAX's own transformation:

      >>> @jax.jit
      ... def step(params, batch):
      ...     return checked(loss)(network(params, batch.images), batch.labels)
      >>> error, value = checkify.checkify(step)(params, batch)  # jax.experimental.checkify
      >>> error.throw()

    (Without it JAX refuses to compile the step, and says so.) Under vmap, grad and scan as well.
    Nothing is added to a loss that is not wrapped.

    What is looked at, in rows whose weight is not 0 and whose label is not ignored:
      predictions: finite; boxes not inverted; probabilities in [0, 1]. A warning where all
        logits are in [0, 1], and not all 0: these look like probabilities.
      rotated boxes: finite, no width or height below 0.
      labels in range (-1 and `ignore_index` are padding), scores and soft targets in [0, 1],
        boxes finite and not inverted: where more than a quarter are, they may be x, y, w, h.
      weight: finite, not negative. avg_factor: finite, above 0.
      heads: outputs finite; boxes finite, not inverted and not outside the image; labels below
        num_classes (negative ones are padding); some image with a box.
    Returns: a `Checked`, with the methods of what it wraps.
    Raises: TypeError for what is no loss and no head. ValueError (checkify.JaxRuntimeError) at the
      call.
    """
    if not hasattr(loss, "expects"):
        raise TypeError(
            "checked takes a loss or a head, as build_loss and build_head make them, got "
            f"{getattr(loss, '__name__', None) or repr(loss)}"
        )
    return Checked(loss)


@dataclass(frozen=True)
class Checked:
    """A loss or a head whose `__call__`, `loss` and `update` check their arguments first."""

    wrapped: Any

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._checked(self.wrapped, *args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask before there is anything wrapped
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def loss(self, *args: Any, **options: Any) -> Any:
        """As the head's."""
        return self._checked(self.wrapped.loss, *args, **options)

    def update(self, state: Any, *args: Any, **options: Any) -> Any:
        """As the wrapped one's."""
        return self._checked(functools.partial(self.wrapped.update, state), *args, **options)

    def _checked(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result = call(*args, **options)  # first: shapes and types have their own errors
        for argument in self.wrapped.expects(*args, **options):
            if argument.x is not None and np.size(argument.x):
                _check(type(self.wrapped).__name__, *argument)
        return result


def _check(owner, name, x, rule, used):
    """Raises for the first item of `x` that is read and bad."""
    x = jax.lax.stop_gradient(replicated(x))
    bad, used = rule.bad(x), True if used is None else replicated(used)
    if rule.is_logits:
        _warn_of_probabilities(owner, name, x, used)
    bad &= used
    index = jnp.argmax(bad.reshape(-1))
    place = dict(zip("ijklmn", jnp.unravel_index(index, bad.shape), strict=False))
    where = f"[{', '.join(f'{{{axis}}}' for axis in place)}]" if place else ""
    found = {"value": x.reshape(-1, *x.shape[bad.ndim :])[index], **place}
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


def _warn_of_probabilities(owner, name, x, used):
    suspicious = ((x >= 0) & (x <= 1) | ~jnp.asarray(used)).all() & (x != 0).any()

    def tell(suspicious):
        if suspicious:
            warn(
                f"{owner}: all of {name} is in [0, 1]: are these probabilities? "
                "The loss takes logits"
            )

    if isinstance(suspicious, jax.core.Tracer):
        jax.debug.callback(tell, suspicious)
    else:
        tell(suspicious)
