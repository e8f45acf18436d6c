"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aimemo import SQLiteCache, cached_ai_call
from aimemo.errors import InfrastructureError
from aimemo.management.cli import app
from aimemo.management.service import Operations
from aimemo.setup import config
from tests.kit.proxy import Proxy
from tests.kit.servers import HOST, Server, free_port


@pytest.fixture(autouse=True)
def _own_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "_default", None)


@pytest.fixture
def url(path: Path) -> str:
    """A file with five answers of one operation and two values by hand."""
    cache = SQLiteCache(path, deadline=5)

    @cached_ai_call(operation="qa", cache=cache, tags=("t",))
    def ask(text: str) -> dict[str, str]:
        return {"answer": text}

    for number in range(5):
        ask(f"canary {number}")
    cache.blocking.set_many({"a:1": (1, 2), "a:2": b"x"})
    cache.blocking.close()
    return f"sqlite:///{path}"


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def run_json(*words: str, code: int = 0) -> Any:
    return json.loads(run(*words, "--json", code=code))


def test_entries_are_listed_without_keys_and_values(url: str) -> None:
    found = run_json("entries", "--url", url)
    assert len(found) == 7
    assert len(run_json("entries", "--url", url, "--limit", "3")) == 3
    assert {entry["operation"] for entry in run_json("entries", "--url", url, "--operation", "qa")} == {"qa"}
    assert "canary" not in run("entries", "--url", url)


@pytest.mark.parametrize(
    ("words", "count"),
    [(["--operation", "qa"], 5), (["--tag", "t"], 5), (["--pattern", "a:*"], 2), (["--pattern", "none*"], 0)],
)
def test_what_is_named_is_invalidated(url: str, words: list[str], count: int) -> None:
    assert run_json("invalidate", "--url", url, *words) == {"keys_invalidated": count}
    assert len(run_json("entries", "--url", url)) == 7 - count


@pytest.mark.redis
@pytest.mark.integration
def test_a_slow_way_to_the_server_is_waited_for(url: str, tmp_path: Path) -> None:
    file = str(tmp_path / "all.jsonl")
    assert run_json("export", file, "--url", url) == {"entries": 7}
    with Server() as server, Proxy(server.port) as proxy:
        proxy.behave(pause=(0.12, 0.12))
        assert run_json("import", file, "--url", proxy.url) == {"entries": 7}
        assert len(run_json("entries", "--url", proxy.url)) == 7


def test_an_invalidation_needs_exactly_one_name(url: str) -> None:
    run("invalidate", "--url", url, code=2)
    run("invalidate", "--url", url, "--tag", "t", "--pattern", "*", code=2)


def test_clearing_asks_first(url: str) -> None:
    assert CliRunner().invoke(app, ["clear", "--url", url], input="n\n").exit_code == 1
    assert len(run_json("entries", "--url", url)) == 7
    assert run_json("clear", "--url", url, "--yes") == {"keys_invalidated": 7}


def test_what_is_exported_can_be_imported_elsewhere(url: str, tmp_path: Path) -> None:
    file, other = tmp_path / "export.jsonl", f"sqlite:///{tmp_path}/other.db"
    assert run_json("export", str(file), "--url", url) == {"entries": 7}
    assert file.stat().st_mode & 0o077 == 0, "answers are in it"
    assert run_json("import", str(file), "--url", other) == {"entries": 7}
    there = SQLiteCache(tmp_path / "other.db", deadline=5).blocking
    assert there.get_many(["a:1", "a:2"]) == {"a:1": (1, 2), "a:2": b"x"}
    assert 3500 < there.ttl("a:1") <= 3600
    assert there.invalidate_tag("t") == 5
    there.close()


HEAD = b'{"format": "aimemo-export-1"}\n'
FAULTY = [
    (b"{}\n", 1), (b"not json\n", 1), (b"[1]\n", 1), (b"null", 1), (b"\xff\xfe\xff\n", 1), (b"[" * 100_000, 1),
    (HEAD + b'{"key": 1}\n', 2), (HEAD + b"[1]\n", 2), (HEAD + b"\x80\n", 2),
]  # fmt: skip


@pytest.mark.parametrize(("data", "number"), FAULTY, ids=range(len(FAULTY)))
def test_a_faulty_export_is_refused(url: str, tmp_path: Path, data: bytes, number: int) -> None:
    file = tmp_path / "faulty.jsonl"
    file.write_bytes(data)
    assert run("import", str(file), "--url", url, code=2).startswith(f"aimemo: line {number} ")


def test_an_empty_file_is_no_fault(url: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert run_json("import", str(tmp_path / "empty"), "--url", url) == {"entries": 0}


def test_an_export_that_fails_changes_no_file(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Operations) -> AsyncIterator[dict[str, str]]:
        yield {"format": "aimemo-export-1"}
        raise InfrastructureError("the store is away")

    (tmp_path / "export.jsonl").write_text("the last one")
    monkeypatch.setattr(Operations, "export", fail)
    run("export", str(tmp_path / "export.jsonl"), "--url", url, code=1)
    assert (tmp_path / "export.jsonl").read_text() == "the last one"
    assert [file.name for file in tmp_path.glob("export*")] == ["export.jsonl"]


def test_presets_are_shown() -> None:
    assert {row["preset"] for row in run_json("presets")} >= {"disabled", "ai-production"}


def test_the_doctor_says_what_is_good_and_what_to_do(url: str) -> None:
    assert {finding["state"] for finding in run_json("doctor", "--url", url)} == {"good"}
    findings = run_json("doctor", "--url", f"redis://:hunter2@{HOST}:{free_port()}", code=1)
    assert findings[-1]["check"] == "connection"
    assert findings[-1]["advice"]
    assert "hunter2" not in json.dumps(findings)
    assert run_json("doctor", "--url", "ftp://x", code=1)[0]["check"] == "settings"


def test_the_doctor_looks_at_a_server() -> None:
    with Server() as server:
        findings = {finding["check"]: finding for finding in run_json("doctor", "--url", server.url)}
    assert {"settings", "connection", "rights", "latency", "server", "clock"} == findings.keys()
    assert findings["server"]["found"].startswith("Valkey")
    assert all(finding["state"] in ("good", "poor") for finding in findings.values())


def test_the_status_tells_whether_the_store_answers(url: str) -> None:
    assert run_json("status", "--url", url)["is_available"]
    assert not run_json("status", "--url", f"redis://{HOST}:{free_port()}", code=1)["is_available"]
    run("status", "--url", "ftp://x", code=2)


def test_stats_of_a_service_that_is_away_are_an_error() -> None:
    run("stats", f"http://{HOST}:{free_port()}/internal/cache", code=1)
