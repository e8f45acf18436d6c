"""The values of the golden blobs, and the arguments of the golden keys.

A golden blob says what bytes a release wrote for a value; a golden key, what key it gave a call. Entries of older
releases are found and read only as long as both stay as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from aimemo import InMemoryCache, cached_ai_call
from tests.fuzz.kinds import evaluate

VECTORS: Final = Path(__file__).parent.parent / "vectors"

VALUES: Final[dict[str, str]] = {
    "nothing": "None",
    "scalars": "[True, False, 0, -1, 2**63, 2**64 - 1, 1.5]",
    "texts": r"['', 'NFC \u00e9', 'NFD e\u0301', 'lone \ud800', '\U0001f600', 'nul \0']",
    "bytes": r"[b'', b'\xff\0']",
    "big_ints": "[2**64, -(2**63) - 1, 10**40, -(10**40)]",
    "exotic_floats": "[0.0, -0.0, 5e-324, 1.7976931348623157e308, inf, -inf, nan]",
    "complex": "[1 - 2j, complex(-0.0, inf)]",
    "containers": "[[], (), {}, set(), frozenset(), (1, [2, (3,)]), {1}, frozenset({'a'})]",
    "dict": "{'a': 1, 2: 'b', (3, 'c'): None, b'd': [], frozenset({1}): {}}",
    "looks_like_a_tag": "{'__aimemo__': 'tuple', '__type__': 1}",
    "deep": "[[[[[({'a': ({'b': [1]},)},)]]]]]",
    "datetimes": "[dt.datetime(2024, 10, 27, 2, 30, 1, 5), dt.datetime(2024, 10, 27, 2, 30, tzinfo=dt.UTC), "
    "dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo('Europe/Berlin')), "
    "dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-3, seconds=30)))]",
    "dates": "[dt.date(2024, 2, 29), dt.time(23, 59, 59, 999999), dt.time(1, fold=1), dt.time(1, tzinfo=dt.UTC), "
    "dt.timedelta(days=-1, microseconds=1)]",
    "decimals": "[Decimal('-0.10'), Decimal('1E+400'), Decimal('-Infinity'), Decimal('sNaN')]",
    "uuid": "UUID(int=7)",
    "enums": "[Colour.RED, Colour.BLUE, Level.ONE, Style.ONE, Permission.READ, Permission(3), Permission(0), Silent.B]",
    "dataclass": "Point(1, Point('a', (2,)))",
    "named_tuple": "Pair(1, Pair('a', []))",
    "model": "seen(Person(name='Ann', address=Address(number=2), age=7), 1, 2)",
    "generic_model": "Page[Address](items=[Address(street='Side')])",
    "arrays": "[np.arange(6, dtype='>i2').reshape(2, 3), np.zeros((0, 3)), np.array([True]), np.array([1 + 2j]), "
    "np.array(['a', 'bc']), np.array([b'x']), np.array(['2024-01-01', 'NaT'], 'M8[s]')]",
    "array_scalars": "[np.float32(1.5), np.int64(-1), np.bool_(True), np.str_('a'), np.timedelta64(3, 'h')]",
    "compressed": "{'text': 'answer ' * 60, 'items': [(1, 2)] * 40}",
    "tags_and_facts": "'text'",
}
"""What each golden blob holds. New ones may be added; none may be changed."""

FACTS: Final = {"model": "m", "tokens": 3, "cost": 0.25}
TAGS: Final = ("customer-7", "é")

ARGUMENTS: Final = (
    "None", "True", "1", "-255", "10**30", "1.0", "-0.0", "0.1", "nan", "inf", "1 + 2j", "'text'", "'s1:a'", "''",
    r"'\u00e9'", r"'e\u0301'", r"'\ud800'", "b'1'", "bytes(1025)", "bytearray(b'1')", "...", "[1, 'a']", "(1, 'a')",
    "{1, 2, 'a'}", "frozenset({(1,)})", "{'b': 1, 'a': [2], 3: None}", "collections.OrderedDict(b=1, a=2)", "range(3)",
    "slice(1, 2)", "dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo('Europe/Berlin'))",
    "dt.datetime(2024, 1, 1, tzinfo=dt.UTC)", "dt.date(2024, 1, 1)", "dt.time(9)", "dt.timedelta(hours=-1)",
    "Decimal('1.50')", "Fraction(1, 3)", "UUID(int=7)", "re.compile('a', re.IGNORECASE)", "Colour.RED", "Level.ONE",
    "Permission(3)", "Silent.B", "Point(1, (2,))", "Pair(1, 2)", "Person(name='a', extra=1)",
    "Tagged('a')", "OtherInt(1)",
    "np.arange(3, dtype='<i4')", "np.float64(1)", "int", "Colour", "Point", "list[int]",
    "len", "functools.partial(max, 1)",
)  # fmt: skip
"""Arguments whose keys must never change. More may be added; none may be changed."""

CALLS: Final = (
    "('a question',)", "('a question', 'large')", "('a question',), dict(n=1.5, b=[1])", "('',)", "('a|b%c',)",
    "('q',), dict(scope='customer-7')", "('q',), dict(version='2')", "('q',), dict(scope='', version='')",
)  # fmt: skip
"""Calls of `ask(text, model="small", **more)` as operation `golden|op`."""


def ask(text: str, model: str = "small", **more: Any) -> None: ...


def key_of(call: str) -> str:
    """The key of one of the calls, with texts of up to 10 characters readable."""
    made = evaluate(call)
    args, settings = made if type(made[-1]) is dict else (made, {})
    options = {name: settings[name] for name in ("scope", "version") if name in settings}
    more = {name: value for name, value in settings.items() if name not in options}
    decorated = cached_ai_call(operation="golden|op", cache=InMemoryCache(), text_hash_threshold=10, **options)(ask)
    return decorated.key_for(*args, **more)
