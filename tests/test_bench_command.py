"""`python -m aimemo bench`: what it prints, and what its exit code says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aimemo import InMemoryCache, cache_from_url
from aimemo.management import bench
from aimemo.measure.benchmark import BenchmarkResult
from tests.kit.servers import HOST, Server

UNUSABLE = {
    "nobody there": ["redis://user:geheim@127.0.0.1:1"],
    "nobody there as the second": ["memory://", "redis://user:geheim@127.0.0.1:1?password=geheim"],
    "port out of range": ["redis://user:geheim@localhost:99999"],
    "no URL": ["nonsense"],
    "unknown scheme": ["http://user:geheim@localhost"],
    "no file": ["sqlite:///"],
    "option that is not known": ["redis://user:geheim@localhost?color=geheim"],
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith(("BENCHMARK_", "AIMEMO_"))]:
        monkeypatch.delenv(variable)
    for setting, text in {"DEFAULT_ITERATIONS": "2", "WARMUP_ITERATIONS": "1", "ENABLE_MEMORY_TRACKING": "0"}.items():
        monkeypatch.setenv(f"BENCHMARK_{setting}", text)
    monkeypatch.setenv("COLUMNS", "300")


class Slow(InMemoryCache):
    """Some fifty times slower than its base."""

    async def get_or_compute(self, key: str, compute: Any, ttl: Any = None) -> Any:
        time.sleep(0.001)
        return await super().get_or_compute(key, compute, ttl)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches in memory of twenty entries, one of them slow: comparisons are short, and their verdicts clear."""
    kinds: dict[str, type[InMemoryCache]] = {"memory://": InMemoryCache, "slow://": Slow}
    monkeypatch.setattr(bench, "cache_from_url", lambda url, **settings: kinds[url](20, **settings))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aimemo", "bench", *arguments],
        capture_output=True, text=True, timeout=60, check=False, cwd=Path(__file__).parent.parent,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_compares_two_caches_and_exits_with_the_verdict(tmp_path: Path) -> None:
    done = command("memory://", f"sqlite:///{tmp_path}/c.db", "--iterations", "4", "--json")
    assert done.returncode == 1, done.stderr
    figures = json.loads(done.stdout)
    assert figures["comparison"]["regression_detected"] is True
    assert figures["comparison"]["new"]["iterations"] == 4
    assert len(figures["results"]) == 2


@pytest.mark.slow
def test_the_command_refuses_arguments_that_make_no_sense() -> None:
    for arguments in ([], ["memory://", "--iterations", "0"], ["memory://", "--iterations", "many"]):
        assert command(*arguments).returncode == 2


def test_one_cache_is_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["memory://"], iterations=None, as_json=True) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures.keys() == {"results"}
    result = BenchmarkResult(**figures["results"][0])
    assert (result.iterations, result.success_rate, result.memory_peak_mb) == (200, 1.0, None)


def test_iterations_given_come_before_those_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["memory://"], iterations=1, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["iterations"] == 100


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_slower_second_cache_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["memory://", "slow://"], iterations=3, as_json=True) == 1
    comparison = json.loads(capsys.readouterr().out)["comparison"]
    assert comparison["regression_detected"] is True
    assert comparison["performance_change_percent"] > 100


@pytest.mark.usefixtures("small")
def test_a_faster_second_cache_is_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["slow://", "memory://"], iterations=3, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["comparison"]["performance_change_percent"] < 0


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_a_table_has_a_row_for_every_measurement_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run(["memory://", "slow://"], iterations=3, as_json=False) == 1
    output = capsys.readouterr().out
    assert output.count("100.0%") == 4
    assert output.rstrip().endswith(": regression")
    assert "set in <InMemoryCache" in output
    assert "set in <Slow" in output


def test_brackets_in_a_path_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bench.run([f"sqlite:///{tmp_path}/[red]c.db"], iterations=1, as_json=False) == 0
    assert "[red]c.db" in capsys.readouterr().out


@pytest.mark.parametrize("urls", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("as_json", [True, False])
def test_a_cache_that_cannot_be_used_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], urls: list[str], as_json: bool
) -> None:
    assert bench.run(urls, iterations=1, as_json=as_json) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("aimemo: ")
    assert "geheim" not in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_cache_that_does_not_answer_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(InMemoryCache):
        async def connect(self) -> bool:
            return False

    monkeypatch.setattr(bench, "cache_from_url", lambda url, **settings: Silent(**settings))
    assert bench.run(["memory://"], iterations=1, as_json=True) == 2
    assert capsys.readouterr().err.rstrip().endswith("does not answer")


@pytest.mark.parametrize(("variable", "text"), [("BENCHMARK_ENV", "moon"), ("BENCHMARK_DEFAULT_ITERATIONS", "many")])
def test_an_unreadable_variable_is_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)
    assert bench.run(["memory://"], iterations=None, as_json=True) == 2
    assert variable in capsys.readouterr().err


@pytest.mark.redis
def test_a_server_s_password_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with Server(requirepass="geheim") as server:
        for as_json in (True, False):
            url = f"redis://:geheim@{HOST}:{server.port}/0"
            assert bench.run([url], iterations=1, as_json=as_json) == 0
            printed = capsys.readouterr()
            assert "geheim" not in printed.out + printed.err
            assert str(server.port) in printed.out


@pytest.mark.redis
def test_no_answer_is_left_on_the_server() -> None:
    with Server() as server:
        assert bench.run([server.url], iterations=1, as_json=True) == 0
        assert cache_from_url(server.url).blocking.clear() == 0
