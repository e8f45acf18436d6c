"""What makes two calls of one function the same call."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Final

from aimemo.compiled import compile_apply
from aimemo.core.canonical import UnkeyableParameter, canonical, canonical_arguments
from aimemo.core.codec import is_immutable
from aimemo.core.entry import Address
from aimemo.core.keys import key_prefix, make_key
from aimemo.errors import UnkeyableArgumentError, ValidationError
from aimemo.options import Options, bound_values, form_of, version_of

_STARS: Final[dict[Any, str]] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_SCALARS: Final = frozenset({str, bytes, int, float, bool, type(None)})


class Identity:
    """Everything of a function's identity that never changes, and how to tell the rest from the arguments.

    Attributes:
        indexed: which parameters go into a front's address; None if the function can have no front.
        apply: `apply(function, values)` calls a function as the signature says.
    """

    def __init__(self, function: Callable[..., Any], options: Options, signature: inspect.Signature) -> None:
        self.options = options
        self._function = function
        self.apply = compile_apply(signature)
        self._parameters = tuple(signature.parameters)
        bound = bound_values(function)
        stars = {p.name: p.kind for p in signature.parameters.values() if p.kind in _STARS}
        takes_any_name = inspect.Parameter.VAR_KEYWORD in stars.values()
        self._check_names("ignore", [] if takes_any_name else [name for name in options.ignore if name not in bound])
        self._check_names("text", (options.text,) if options.text is not None else ())
        self._bound = {name: value for name, value in bound.items() if name not in options.ignore}
        is_fixed = all(map(is_immutable, self._bound.values()))
        self.has_front = is_fixed and not (stars or options.key or options.skip_if)
        kept = [name not in options.ignore for name in self._parameters]
        self.indexed = kept if self.has_front else None
        self._kept = tuple(at for at, is_kept in enumerate(kept) if is_kept)
        starred = [_STARS[stars[name]] + name if name in stars else name for name in self._parameters]
        self._kept_names = (*self._bound, *(starred[at] for at in self._kept))
        self._left_out = frozenset(options.ignore).difference(self._parameters, bound)  # of `**keywords`, the last ones
        self._prefix = key_prefix(options.operation)

    @functools.cached_property
    def _head(self) -> str:
        """Made at the first call: what a function captures may be assigned after its definition."""
        return canonical((self.options.operation, version_of(self._function, self.options.version)))

    def _check_names(self, option: str, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._parameters:
                raise ValidationError(
                    f"{option} names {name!r}, but {self.options.operation} has the parameters "
                    f"{', '.join(self._parameters) or '(none)'}", {option: name},
                )  # fmt: skip

    def are_fixed(self, values: tuple[Any, ...]) -> bool:
        """Whether nobody can change what the key was made of."""
        used = values if self.options.key is not None else self.used(values)
        return all(type(value) in _SCALARS for value in (*self._bound.values(), *used))

    def used(self, values: tuple[Any, ...]) -> list[Any]:
        """The arguments that matter."""
        if self._left_out:
            keywords = {name: value for name, value in values[-1].items() if name not in self._left_out}
            values = (*values[:-1], keywords)
        return [values[at] for at in self._kept]

    def tenant(self) -> str | None:
        """Whose call this is."""
        scope = self.options.scope
        tenant = scope() if callable(scope) else scope
        if tenant is not None and type(tenant) is not str:
            raise ValidationError(f"scope must give a string, not {type(tenant).__name__}", {"scope": "type"})
        return tenant

    def address(self, values: tuple[Any, ...], tenant: str | None, limit: int) -> Address | None:
        """Where the front may keep the answer; None for arguments whose equality says too little."""
        if not self.has_front:
            return None
        used = self.used(values)
        size = 0
        for value in used:
            if type(value) is str or type(value) is bytes:
                size += len(value)
            elif type(value) not in _SCALARS and not _is_plain_enum(value):
                return None
        if size > limit:
            return None
        address = (*used, *map(type, used))
        return (*address, tenant) if callable(self.options.scope) else address

    def key(self, values: tuple[Any, ...], tenant: str | None, threshold: int) -> str:
        """The key of a call.

        Raises:
            UnkeyableArgumentError: naming the parameter whose argument has no canonical form.
        """
        options = self.options
        text: Any = None
        try:
            if options.key is not None:
                arguments = canonical_arguments(("key=",), (self.apply(options.key, values),))
            else:
                used = self.used(values)
                arguments = canonical_arguments(self._kept_names, (*self._bound.values(), *used))
                text = self._text(values, used)
        except UnkeyableParameter as error:
            raise self._unkeyable(error, values) from error
        owner = "N" if tenant is None else canonical(tenant)
        return make_key(self._prefix, text, threshold, f"{owner}{self._head}{arguments}")

    def _text(self, values: tuple[Any, ...], used: list[Any]) -> str | None:
        named = self.options.text
        if named is None:
            for value in used:
                if type(value) is str:
                    return value
            return None
        text = values[self._parameters.index(named)]
        return text if type(text) is str and named not in self.options.ignore else None

    def _unkeyable(self, error: UnkeyableParameter, values: tuple[Any, ...]) -> UnkeyableArgumentError:
        name = error.parameter.lstrip("*")
        if error.parameter.startswith("**"):
            name = next(filter(lambda name: form_of(values[-1][name]) is None, values[-1]), name)
        if name == "key=":
            return UnkeyableArgumentError(f"what key= gave for {self.options.operation} cannot be keyed: {error}")
        return UnkeyableArgumentError(
            f"argument {name!r} of {self.options.operation} cannot be keyed: it is or holds {error}. "
            f"Leave it out with ignore=({name!r},), give its class a __cache_key__() method, or give key="
        )


def _is_plain_enum(value: Any) -> bool:
    """Whether a value is an Enum member that equals itself alone, and that nobody can change."""
    cls = type(value)
    if not issubclass(cls, enum.Enum) or not is_immutable(value._value_):
        return False
    own = [base for base in cls.__mro__ if base.__module__ not in ("enum", "builtins")]
    is_usual = {base for base in cls.__mro__ if base.__module__ == "builtins"} <= {object, str, bytes, int, float}
    if not is_usual or any("__eq__" in vars(base) or "__hash__" in vars(base) for base in own):
        return False
    return len(set(cls)) == len(list(cls))  # members that are text or numbers too are equal where those are
