"""Keys: their form, what may stand in them, and what of a call can be read back from them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from aimemo import Cache, InMemoryCache, SQLiteCache, UnkeyableArgumentError, ValidationError, cached_ai_call
from aimemo.core.keys import digest_of, fingerprint, key_prefix, make_key, operation_of
from aimemo.core.ports import compile_glob

FORM = re.compile(r"op:([^|]*)\|txt:([^|]*)\|([0-9a-f]{32})")
COLLISION = json.loads((Path(__file__).parent / "vectors" / "xxh3_128_ascii_collision.json").read_text())


def key_of(operation: str, text: str | None = None, threshold: int = 0, identity: str = "") -> str:
    return make_key(key_prefix(operation), text, threshold, identity)


texts = st.text(max_size=9) | st.text(alphabet="|%:opt0123456789AF\n\x00\x7f\ud800\udfff", max_size=8)


@given(operation=texts, text=st.none() | texts, threshold=st.integers(0, 10), identity=st.text())
def test_operation_and_digest_can_be_read_back_whatever_stands_in_a_key(
    operation: str, text: str | None, threshold: int, identity: str
) -> None:
    key = key_of(operation, text, threshold, identity)
    form = FORM.fullmatch(key)
    assert form is not None
    assert operation_of(key) == operation
    assert digest_of(key) == form[3]
    key.encode()  # no lone surrogates
    assert all(character not in key for character in "\x00\n\x7f")


@given(texts, texts)
def test_two_operations_never_look_alike(left: str, right: str) -> None:
    assert (key_of(left) == key_of(right)) == (left == right)


@given(texts)
@example("op:%FF|txt:|" + "0" * 32)
@example("op:%ED%A0%80|txt:|" + "0" * 32)
@example("op:%|txt:|" + "0" * 32)
def test_any_text_may_be_a_key_written_by_hand(key: str) -> None:
    assert isinstance(operation_of(key), str)
    assert re.fullmatch("[0-9a-f]{32}", digest_of(key))


def test_a_key_written_by_hand_that_looks_like_a_damaged_one_is_a_key_all_the_same(cache: Cache) -> None:
    key = "op:100%FF|txt:|" + "0" * 32
    cache.blocking.set(key, "kept")
    assert cache.blocking.get(key) == "kept"


ZEROS = "0" * 32
OTHER_FORMS = ["", "user:1", "op:qa|txt:|short", f"op:qa|txt:|0{ZEROS}", "op:qa|txt:|" + "G" * 32, f"op:qa|{ZEROS}"]


@pytest.mark.parametrize("key", [*OTHER_FORMS, f" op:qa|txt:|{ZEROS}", f"op:qa|txt:|{ZEROS}\n", f"op:q|a|txt:|{ZEROS}"])
def test_a_key_of_another_form_has_no_operation_and_a_digest_that_hides_it(key: str) -> None:
    assert operation_of(key) == ""
    assert digest_of(key) not in key
    assert digest_of(key) != digest_of(key + "x")


@pytest.mark.parametrize("part", ["%FF", "%", "%41", "%7c"])
def test_what_no_operation_is_escaped_to_names_none(part: str) -> None:
    assert operation_of(f"op:{part}|txt:|{ZEROS}") == ""


@given(st.text(), st.text())
def test_only_the_identity_decides_the_digest(left: str, right: str) -> None:
    digests = {digest_of(key_of("op", left, 0, identity)) for identity in (left, right)}
    assert len(digests) == len({left, right})
    assert digest_of(key_of("op", left, 9, left)) == digest_of(key_of("po", right, 0, left))


def test_keys_and_fingerprints_are_made_as_ever() -> None:
    """Another key, or fingerprint, would lose all that is in stores already."""
    assert key_of("ask|it", "a text", 9, "identity") == "op:ask%7Cit|txt:a text|689f6a627384c7dcb2dcc1487e540223"
    assert key_of("", None, 0, "\ud800é") == "op:|txt:|e735d000df46d8ed6614cbd75d6ee94b"
    assert fingerprint("space", "key").hex() == "dafea936d984c57862faef288824bfec"
    assert fingerprint("\ud800", "\udfff|").hex() == "883a833c83fc2a8f31a24888cbf269cb"


def xxh3(text: str) -> str:
    return "hash:" + xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


LABELS = [
    (None, 0, ""),
    ("", 0, ""),
    ("secret", 0, xxh3("secret")),
    ("hello", 5, "hello"),
    ("hello!", 5, xxh3("hello!")),
    ("ééééé", 5, "ééééé"),
    ("a|b%c\n", 9, "a%7Cb%25c%0A"),
    ("\ud800", 9, "%ED%A0%80"),
    ("\ud800", 0, xxh3("\ud800")),
]


@pytest.mark.parametrize(("text", "threshold", "label"), LABELS)
def test_a_text_stays_readable_up_to_the_threshold(text: str | None, threshold: int, label: str) -> None:
    form = FORM.fullmatch(key_of("op", text, threshold))
    assert form is not None
    assert form[2] == label


def test_prompts_do_not_appear_in_keys_by_default(cache: Cache) -> None:
    @cached_ai_call(operation="ask", cache=cache)
    def ask(text: str, context: str = "") -> str:
        return text

    assert "secret" not in ask.key_for("a secret", "another secret") + cache.build_key("a secret", "ask")


THRESHOLDS = [(0, None, False), (100, None, True), (100, 0, False), (0, 100, True), (100, 7, False)]


@pytest.mark.parametrize(("of_cache", "of_function", "is_readable"), THRESHOLDS)
def test_the_threshold_of_the_function_goes_before_that_of_the_cache(
    of_cache: int, of_function: int | None, is_readable: bool
) -> None:
    cache = InMemoryCache(text_hash_threshold=of_cache)

    @cached_ai_call(operation="ask", cache=cache, text_hash_threshold=of_function)
    def ask(text: str) -> str:
        return text

    assert ("|txt:a prompt|" in ask.key_for("a prompt")) == is_readable


LABELLED = [({}, "first"), ({"text": "b"}, "second"), ({"ignore": ("a",)}, "second"), ({"key": lambda *_: "key"}, "")]


@pytest.mark.parametrize(("options", "label"), LABELLED)
def test_the_label_is_the_named_text_or_the_first_one_that_counts(options: dict[str, Any], label: str) -> None:
    @cached_ai_call(operation="ask", cache=InMemoryCache(text_hash_threshold=100), **options)
    def ask(n: int, a: str = "first", b: str = "second") -> str:
        return a

    assert ask.key_for(1).split("|")[1] == f"txt:{label}"


def test_an_ignored_text_never_labels_a_key() -> None:
    cache = InMemoryCache(text_hash_threshold=100)

    @cached_ai_call(operation="ask", cache=cache, text="password", ignore=("password",))
    def ask(password: str, n: int) -> int:
        return n

    assert ask.key_for("secret", 1) == ask.key_for("other", 1)


# F33: two texts with one xxh3-128


@pytest.mark.parametrize("kind", [InMemoryCache, SQLiteCache])
@pytest.mark.parametrize("threshold", [0, 100_000])
def test_two_texts_with_one_label_get_their_own_answers(kind: type[Cache], threshold: int, tmp_path: Path) -> None:
    a, b = COLLISION["a"], COLLISION["b"]
    assert a != b
    assert xxh3(a) == xxh3(b)
    path = {"path": tmp_path / "cache.db", "deadline": 5} if kind is SQLiteCache else {}
    first, again = kind(**path, text_hash_threshold=threshold), kind(**path, text_hash_threshold=threshold)
    for cache in (first, first, again):  # the second round hits memory, the third the slower tier where there is one
        ask = cached_ai_call(operation="ask", cache=cache)(lambda text: text)
        assert (ask(a), ask(b)) == (a, b)
        assert cache.build_key(a, "ask") != cache.build_key(b, "ask")
    for cache in (first, again):
        cache.blocking.close()


# build_key


def test_a_built_key_has_the_form_of_a_decorated_calls(cache: Cache) -> None:
    key = cache.build_key("a text", "my|op", {"model": "small"})
    assert FORM.fullmatch(key)
    assert operation_of(key) == "my|op"


BUILT: list[tuple[str, str, Mapping[str, Any]]] = [
    ("a", "op", {}),
    ("b", "op", {}),
    ("a", "op2", {}),
    ("a", "op", {"n": 1}),
    ("a", "op", {"n": True}),
    ("a", "op", {"n": 1.0}),
    ("a", "op", {"n": "1"}),
    ("a", "op", {"n": None}),
    ("a", "op", {"m": 1}),
    ("a", "op", {"n": [1]}),
    ("a", "op", {"n": (1,)}),
    ("é", "op", {}),
    ("e\u0301", "op", {}),
]


def test_built_keys_are_as_exact_as_the_form_of_their_parts(cache: Cache) -> None:
    assert len({cache.build_key(*parts) for parts in BUILT}) == len(BUILT)
    assert cache.build_key("a", "op") == cache.build_key("a", "op", None) == cache.build_key("a", "op", {})
    assert cache.build_key("a", "op", {"x": 1, "y": 0.0}) == cache.build_key("a", "op", {"y": -0.0, "x": 1})


def test_options_without_a_form_cannot_build_a_key(cache: Cache) -> None:
    with pytest.raises(UnkeyableArgumentError, match="options"):
        cache.build_key("a", "op", {"client": object()})


@pytest.mark.parametrize(
    "parts", [(b"a", "op"), (None, "op"), ("a", ""), ("a", " "), ("a", None), ("a", "op", [1])], ids=repr
)
def test_parts_of_other_types_build_no_key(parts: Any) -> None:
    with pytest.raises(ValidationError, match=r"(text|operation|options) must be a"):
        InMemoryCache().build_key(*parts)


# Globs

GLOBS = [
    ("*", ["", "a", "a\nb", "op:x|txt:|0"], []),
    ("a*", ["a", "ab", "a|*"], ["ba", ""]),
    ("*a*b*", ["ab", "xaxbx"], ["ba", "a"]),
    ("a?c", ["abc", "a?c", "a\nc", "aéc"], ["ac", "abbc"]),
    ("a[bc]d", ["abd", "acd"], ["ad", "abcd", "aed", "a[bc]d"]),
    ("a[b-d]", ["ab", "ac", "ad"], ["aa", "a-", "ae"]),
    ("a[d-b]", ["ab", "ac", "ad"], ["aa", "a-"]),
    ("[^a]", ["b", "^", "\n"], ["a", ""]),
    ("[!a]", ["!", "a"], ["b"]),
    ("[a^]", ["a", "^"], ["b"]),
    ("[.+]", [".", "+"], ["a", "\\"]),
    (r"[\]]", ["]"], ["\\", "a"]),
    (r"[\^a]", ["^", "a"], ["b", "\\"]),
    ("[]", [], ["", "]", "[]"]),
    ("[ab", ["a", "b"], ["[ab", ""]),
    (r"\*", ["*"], ["a", "\\*", "\\"]),
    (r"\[a]", ["[a]"], ["a"]),
    (r"a\\", ["a\\"], ["a"]),
    ("a\\", ["a\\"], ["a"]),
    ("a.c", ["a.c"], ["abc"]),
    ("(a|b)+$^", ["(a|b)+$^"], ["a"]),
    ("", [""], ["a"]),
    ("a", ["a"], ["a\n", "ab", "A"]),
]


@pytest.mark.parametrize(("pattern", "matching", "others"), GLOBS, ids=[glob[0] for glob in GLOBS])
def test_a_glob_means_what_it_means_in_redis(pattern: str, matching: list[str], others: list[str]) -> None:
    glob = compile_glob(pattern)
    assert [text for text in matching if not glob.match(text)] == []
    assert [text for text in others if glob.match(text)] == []


@given(st.text(alphabet="ab*?[]^-\\.", max_size=8), st.text(alphabet="ab*?[]^-\\.", max_size=6))
def test_a_text_with_its_special_characters_escaped_matches_itself_alone(text: str, other: str) -> None:
    glob = compile_glob(re.sub(r"([*?\[\]\\])", r"\\\1", text))
    assert glob.match(text)
    assert bool(glob.match(other)) == (text == other)


def test_a_sweep_by_glob_removes_what_matches_on_every_tier(cache: Cache) -> None:
    cache.blocking.set_many({"a:1": 1, "a:2": 2, "b:1": 3, "a[1]": 4})
    assert cache.blocking.invalidate_pattern(r"a\[*") == 1
    assert cache.blocking.invalidate_pattern("a:[12]") == 2
    assert cache.blocking.get_many(["a:1", "a:2", "b:1", "a[1]"]) == {"b:1": 3}
