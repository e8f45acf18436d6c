"""Caches from URLs, from the environment, and for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import aimemo
from aimemo import ConfigurationError, InMemoryCache, SQLiteCache, ValidationError, cache_from_url, cached_ai_call
from aimemo.setup import config


@pytest.fixture(autouse=True)
def _own_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a process's default cache of its own."""
    monkeypatch.setattr(config, "_default", None)
    yield


def test_a_url_names_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory = cache_from_url("memory://", max_size=7, default_ttl=5)
    assert isinstance(memory, InMemoryCache)
    assert (memory.max_size, memory.default_ttl) == (7, 5)
    relative, absolute = cache_from_url("sqlite:///a%20b.db"), cache_from_url(f"sqlite:///{tmp_path}/c.db")
    assert isinstance(relative, SQLiteCache)
    assert relative.path == Path("a b.db")
    assert isinstance(absolute, SQLiteCache)
    assert absolute.path == tmp_path / "c.db"


@pytest.mark.parametrize(
    "url", ["", "nonsense", 1, None, "http://x", "sqlite://", "sqlite://x/y", "sqlite:///", "memory://x"]
)
def test_a_url_that_names_none_is_refused(url: Any) -> None:
    with pytest.raises(ConfigurationError):
        cache_from_url(url)


def test_the_default_cache_is_made_on_first_use_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIMEMO_URL", f"sqlite:///{tmp_path}/c.db")
    monkeypatch.setenv("AIMEMO_DEFAULT_TTL", "5")
    monkeypatch.setenv("AIMEMO_OPERATION_TTLS", '{"qa": 7}')
    monkeypatch.setenv("AIMEMO_NAMESPACE", "mine")
    monkeypatch.setenv("AIMEMO_TEXT_HASH_THRESHOLD", "9")
    monkeypatch.setenv("AIMEMO_COMPRESSION_THRESHOLD", "10")
    cache = aimemo.get_cache()
    assert isinstance(cache, SQLiteCache)
    assert aimemo.get_cache() is cache
    assert (cache.default_ttl, cache.operation_ttls, cache.namespace) == (5, {"qa": 7}, "mine")
    assert (cache.text_hash_threshold, cache.compression_threshold) == (9, 10)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("DEFAULT_TTL", "soon"), ("DEFAULT_TTL", "-1"), ("OPERATION_TTLS", "{"), ("OPERATION_TTLS", '{"x": -1}'),
     ("NAMESPACE", "a b"), ("DISABLED", "perhaps"), ("TEXT_HASH_THRESHOLD", "1.5"), ("URL", "ftp://x")],
)  # fmt: skip
def test_a_faulty_variable_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(f"AIMEMO_{variable}", text)
    with pytest.raises(ValidationError):
        aimemo.get_cache()


@pytest.mark.parametrize(("text", "calls"), [("1", 2), ("true", 2), ("0", 1), ("no", 1)])
def test_a_variable_disables_caching(monkeypatch: pytest.MonkeyPatch, text: str, calls: int) -> None:
    monkeypatch.setenv("AIMEMO_DISABLED", text)
    made: list[str] = []

    @cached_ai_call(operation=f"disabled {text}")
    def ask(text: str) -> str:
        made.append(text)
        return text

    assert (ask("q"), ask("q")) == ("q", "q")
    assert len(made) == calls


def test_configure_after_decoration_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    @cached_ai_call(operation="reconfigured")
    def ask(text: str) -> str:
        made.append(text)
        return text.upper()

    assert ask.cache is None
    first = aimemo.configure()
    assert ask.cache is first
    assert (ask("q"), ask("q"), made) == ("Q", "Q", ["q"])
    second = aimemo.configure("memory://", default_ttl=7)
    assert ask.cache is second
    assert (ask("q"), made) == ("Q", ["q", "q"])
    assert (first.stats().hits, second.stats().misses) == (1, 1)


def test_settings_given_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIMEMO_DEFAULT_TTL", "5")
    assert aimemo.configure("memory://", default_ttl=7).default_ttl == 7
    assert aimemo.configure("memory://").default_ttl == 5


def test_functions_with_one_url_share_one_cache(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"

    @cached_ai_call(operation="one", cache=url)
    def one(text: str) -> str:
        return text

    @cached_ai_call(operation="two", cache=url)
    def two(text: str) -> str:
        return text

    assert one.cache is two.cache
    assert isinstance(one.cache, SQLiteCache)
    assert one("q") == "q"
    one.cache.blocking.close()
