"""From a config dict to a loss: `build_loss(dict(type="FocalLoss", gamma=2.0))`."""

import dataclasses
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from visdet_jax.core.elsewhere import not_here
from visdet_jax.core.fields import as_tuple, describe, field_types, item_type, union_members
from visdet_jax.core.names import did_you_mean

# Prefixes by which configs of these libraries name their registries.
SCOPES = ("mmdet", "mmrotate", "mmyolo", "visdet")

Class = TypeVar("Class", bound=type)


# About keys that are known from elsewhere.
_HINTS = {
    "_delete_": " It tells mmengine to replace the base config's dict and not to merge the two: "
    "load the config by mmengine, or leave the key out.",
    "num_query": " It is mmdet 2's: the number of queries is the network's, so leave it out.",
    "train_cfg": " build_head takes it, beside the head's config or in it.",
    "iou_mode": " It is a key of mmyolo's IoULoss, which is IoULoss and YOLOIoULoss here.",
    "bbox_format": " It is a key of mmyolo's IoULoss, which is IoULoss and YOLOIoULoss here.",
    "return_iou": " It is a key of mmyolo's IoULoss, which is IoULoss and YOLOIoULoss here.",
}


# Of a key that may stand elsewhere than in a head's config: what the error for a missing one adds.
_ELSEWHERE = {
    "assigner": ", or in its train_cfg: build_head(config, train_cfg=dict(assigner=...))",
}


class UnknownName(KeyError, ValueError):
    """No class of that name: a KeyError for whoever looks it up, a ValueError for a config."""

    __str__ = Exception.__str__  # KeyError's shows the repr of the message.


class Registry(Mapping[str, type]):
    """Classes by name, registered by a decorator, built from config dicts.

    Example:
      >>> @LOSSES.register_module()
      ... @dataclass(frozen=True, kw_only=True)
      ... class MyLoss(Loss, function=my_loss):
      ...     beta: float = 1.0
      >>> LOSSES.build(dict(type="MyLoss", beta=2.0))
    """

    def __init__(
        self,
        kind: str,
        parts: "Mapping[type, Registry] | None" = None,
        ignored: Sequence[str] = (),
        explain: Callable[[str], str] = lambda name: "",
    ) -> None:
        """An empty registry.

        Args:
          kind: What its classes are, in the words of an error message.
          parts: The registries that build configs nested in fields of a type.
          ignored: Keys of configs that have no effect on classes without such a field.
          explain: `(name) -> sentence` about a name that is not registered, or "".
        """
        self.kind, self.parts, self.ignored = kind, parts or {}, frozenset(ignored)
        self._explain = explain
        self._classes: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        # "mmdet.FocalLoss", or what mmengine writes: "mmdet.models.losses.focal_loss.FocalLoss".
        scope, bare = name.split(".")[0] if "." in name else "", name.split(".")[-1]
        if scope in ("", __package__, *SCOPES) and bare in self._classes:
            return self._classes[bare]
        raise UnknownName(f"No {self.kind} is called {name!r}{self._reason(scope, bare)}")

    def _reason(self, scope: str, name: str) -> str:
        if scope not in ("", __package__, *SCOPES):
            *known, last = SCOPES
            names = f"{', '.join(known)} and {last}"
            return f": it is {scope}'s own, and only {names}'s names are known here."
        if why := self._explain(name) or not_here(name):
            return f": {why}"
        return f".{did_you_mean(name, self)}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def __repr__(self) -> str:
        return f"Registry of {len(self)} {self.kind} classes: {', '.join(sorted(self))}"

    @property
    def module_dict(self) -> Mapping[str, type]:
        """The classes by name, read-only."""
        return MappingProxyType(self._classes)

    def register_module(
        self, name: str | None = None, force: bool = False
    ) -> Callable[[Class], Class]:
        """A decorator that registers a frozen dataclass, by its own name unless one is given.

        `force=True` replaces a class of that name, which is an error otherwise.
        Raises: TypeError for a class that is not itself a frozen, keyword-only dataclass: its
          fields would be lost without a word. ValueError for a name that is taken.
        """
        if not (name is None or isinstance(name, str)):
            raise TypeError("write @register_module(), with parentheses")

        def register(cls: Class) -> Class:
            _check_dataclass(cls)
            key = name or cls.__name__
            if key in self._classes and not force:
                raise ValueError(
                    f"A {self.kind} called {key!r} is registered already "
                    f"({self._classes[key].__module__}); force=True replaces it."
                )
            self._classes[key] = cls
            return cls

        return register

    def build(self, config: Any) -> Any:
        """An instance of the class that `config["type"]` names, with the other keys as fields.

        Args:
          config: A dict or anything else with `keys()` and `[]` (ml_collections, mmengine,
            OmegaConf); never changed. For `type` and `_scope_` see `find`. `mmyolo.IoULoss`, and
            `IoULoss` with a key that only mmyolo's class of that name has, mean `YOLOIoULoss`.
            Sequences become tuples; numeric strings of numeric fields become numbers (PyYAML reads
            `1e-6` as a string); nested configs are built too.
        Raises: ValueError or TypeError for what is no config, an unknown name (also a KeyError),
          an unknown or missing key, and values that the class does not take.
        """
        if not is_config(config):
            raise TypeError(
                f"A {self.kind} is built from a config such as dict(type=...), got {config!r}"
            )
        settings = as_dict(config)
        if "type" not in settings:
            raise ValueError(f"The config of a {self.kind} needs a key 'type', got {settings}")
        kind = _with_scope(settings.pop("type"), settings.pop("_scope_", None))
        cls = self._dialect(self.find(kind), kind, settings)
        types = field_types(cls)
        ignored = self.ignored - types.keys()
        settings = {key: value for key, value in settings.items() if key not in ignored}
        for key in settings:
            if key not in types:
                hint = _HINTS.get(key) or did_you_mean(key, types)
                raise ValueError(
                    f"{cls.__name__} has no key {key!r}.{hint} Its keys: {', '.join(types)}."
                )
        for field in dataclasses.fields(cls):
            required = (field.default, field.default_factory) == (dataclasses.MISSING,) * 2
            if required and field.name not in settings:
                elsewhere = _ELSEWHERE.get(field.name, "")
                raise ValueError(
                    f"{cls.__name__} needs a key {field.name!r} in its config{elsewhere}"
                )
        return cls(
            **{
                key: self._value(f"{cls.__name__}: {key}", value, types[key])
                for key, value in settings.items()
            }
        )

    def find(self, kind: Any, scope: str | None = None) -> type:
        """The class that a config's `type` means. Nothing is imported for it.

        Args:
          kind: A name ("FocalLoss"), a name with a scope ("mmdet.FocalLoss"), the path of a class
            as mmengine writes it ("mmdet.models.losses.focal_loss.FocalLoss"), a class of this
            package or of yours, or a class of mmdet, mmrotate, mmyolo or visdet, which stands for
            ours of the same name.
          scope: A config's `_scope_`, the library whose registry it names.
        Raises: UnknownName, and TypeError for a class that is not a frozen, keyword-only
          dataclass.
        """
        kind = _with_scope(kind, scope)
        if isinstance(kind, str):
            return self[kind]
        _check_dataclass(kind)
        cls: type = kind
        return cls

    def _dialect(self, cls: type, kind: Any, settings: Mapping[str, Any]) -> type:
        """The class that a config means by a `kind` that says `cls`.

        Two libraries may call different classes by one name. The second one has a name of its own
        here, and its library and the name it shares as `dialect_of`. The scope tells which one is
        meant, and where there is none, a key that only the second one has.
        """
        if not isinstance(kind, str):
            return cls
        scope = kind.split(".")[0] if "." in kind else None
        for other in self.values():
            library, _, shared = getattr(other, "dialect_of", "").partition(".")
            if shared == cls.__name__:
                own = field_types(other).keys() - field_types(cls).keys()
                if scope == library or (scope is None and own & settings.keys()):
                    return other
        return cls

    def _value(self, where: str, value: Any, kind: Any) -> Any:
        """A config's value as a field of type `kind` holds it."""
        if is_config(value):
            classes = [k for k in union_members(kind) if isinstance(k, type)]
            for base, registry in self.parts.items():
                if any(issubclass(cls, base) for cls in classes):
                    if getattr(classes[0], "needs_no_type", False):  # Of a config's `test_cfg`.
                        value = {"type": classes[0]} | as_dict(value)
                    try:
                        return registry.build(value)
                    except (TypeError, ValueError) as error:
                        raise type(error)(f"{where}: {error}") from error
        if _is_sequence(value) and any(map(is_config, value)):
            return tuple(
                self._value(f"{where}[{i}]", part, item_type(kind)) for i, part in enumerate(value)
            )
        return _plain(where, value, kind)


def _with_scope(kind: Any, scope: str | None) -> Any:
    """What `Registry.find` gets, as a name with a scope where it has one; or a class of ours."""
    if isinstance(kind, type) and kind.__module__.split(".")[0] in SCOPES:
        return f"{kind.__module__}.{kind.__name__}"
    if type(kind).__module__.startswith("mmengine."):  # A class that is not imported yet.
        return str(kind)
    if isinstance(kind, str) and scope is not None and "." not in kind:
        return f"{scope}.{kind}"
    return kind


def is_config(value: Any) -> bool:
    """Whether `value` can be read as a dict: ml_collections' and OmegaConf's are none."""
    return hasattr(value, "keys") and hasattr(value, "__getitem__")


def as_dict(config: Any) -> dict[str, Any]:
    """A config's keys and values, through `keys()` and `[]` alone: it need not be iterable."""
    return {key: config[key] for key in config.keys()}  # noqa: SIM118


def _explain_loss(name: str) -> str:
    if name.endswith("Cost"):
        return "it is a match cost, for the `match_costs` of a HungarianAssigner."
    if name.endswith("Head"):
        return "it is a head, for visdet_jax.detectors.build_head."
    return ""


LOSSES = Registry("loss", explain=_explain_loss)
MODELS = LOSSES  # the name by which visdet's and mmdet's code knows it


def build_loss(config: Any) -> Any:
    """The loss of a config such as `dict(type="FocalLoss", gamma=2.0)`; see `Registry.build`."""
    return LOSSES.build(config)


def _check_dataclass(cls: Any) -> None:
    # In the class's own dict: a subclass that forgot the decorator would inherit the attribute.
    params = vars(cls).get("__dataclass_params__") if isinstance(cls, type) else None
    if (
        params is None
        or not params.frozen
        or not all(field.kw_only for field in dataclasses.fields(cls))
    ):
        raise TypeError(
            f"{getattr(cls, '__name__', cls)!r} must be a frozen, keyword-only dataclass: decorate "
            "it with @dataclass(frozen=True, kw_only=True)"
        )


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _plain(where: str, value: Any, kind: Any) -> Any:
    """A config's value as a field holds it: tuples for sequences, numbers for numeric strings."""
    value = as_tuple(value)
    if isinstance(value, tuple):
        return tuple(_plain(where, v, item_type(kind)) for v in value)
    options = union_members(kind)
    takes_strings = any(k is str or typing.get_origin(k) is typing.Literal for k in options)
    if isinstance(value, str) and not takes_strings:
        for number in (int, float):
            if number in options or (number is int and float in options):
                try:
                    return number(value)
                except ValueError:
                    continue
        raise TypeError(f"{where} must be {describe(kind)}, got {value!r}")
    return value
