"""Response objects of the SDKs, built as leniently as the SDKs build them, through a cache file and back."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from aimemo import SQLiteCache, cached_ai_call
from aimemo.core.envelope import unseal
from tests.kit.clock import Clock


class User(pydantic.BaseModel):
    name: str
    born: dt.date


ANSWER = '{"name": "Ann", "born": "2001-02-03"}'
TOOL = {"id": "t", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}', "strict_new": True}}
MESSAGE = {"role": "assistant", "content": ANSWER, "tool_calls": [TOOL]}
COMPLETION = {
    "id": "c", "object": "chat.completion", "created": "soon", "model": "gpt-x", "brand_new": {"deep": [1, None]},
    "choices": [{"index": 0, "finish_reason": "unheard_of", "message": MESSAGE}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
}  # fmt: skip
TEXT = {"type": "output_text", "text": ANSWER, "annotations": []}
RESPONSE = {
    "id": "r", "object": "response", "created_at": 1.5, "model": "gpt-x", "tools": [], "tool_choice": "auto",
    "output": [
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [TEXT]},
        {"type": "brand_new", "payload": {"a": [1]}}, "not even a dict",
    ],
    "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
}  # fmt: skip
ANTHROPIC = {
    "id": "m", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": None,
    "content": [{"type": "text", "text": "hi"}, {"type": "brand_new", "x": 1}, {"type": "tool_use", "input": {"a": 1}}],
    "usage": {"input_tokens": 5, "output_tokens": 7, "brand_new": 1},
}  # fmt: skip


def completion() -> Any:
    return pytest.importorskip("openai.types.chat").ChatCompletion.construct(**copy.deepcopy(COMPLETION))


def completion_with_request_id() -> Any:
    answer = completion()
    pytest.importorskip("openai._models").add_request_id(answer, "req_1")
    assert answer._request_id == "req_1"
    return answer


def parsed_completion() -> Any:
    models = pytest.importorskip("openai._models")
    message = {**MESSAGE, "parsed": User.model_validate_json(ANSWER), "tool_calls": None}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    kind = pytest.importorskip("openai.types.chat").ParsedChatCompletion[User]
    return models.construct_type(type_=kind, value={**COMPLETION, "choices": choices})


def completion_parsed_by_the_sdk() -> Any:
    """What `client.chat.completions.parse(response_format=User)` answers."""
    parsing = pytest.importorskip("openai.lib._parsing")
    choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": ANSWER}}]
    values = {**COMPLETION, "created": 1, "choices": choices}
    raw = pytest.importorskip("openai.types.chat").ChatCompletion.construct(**values)
    return parsing.parse_chat_completion(response_format=User, input_tools=[], chat_completion=raw)


def response() -> Any:
    return pytest.importorskip("openai.types.responses").Response.construct(**RESPONSE)


def response_parsed_by_the_sdk() -> Any:
    """What `client.responses.parse(text_format=User)` answers."""
    parsing = pytest.importorskip("openai.lib._parsing._responses")
    raw = pytest.importorskip("openai.types.responses").Response.construct(
        **{**RESPONSE, "output": RESPONSE["output"][:1]}
    )
    return parsing.parse_response(text_format=User, input_tools=[], response=raw)


def message() -> Any:
    return pytest.importorskip("anthropic.types").Message.construct(**ANTHROPIC)


MAKERS: list[Callable[[], Any]] = [
    completion, completion_with_request_id, parsed_completion, completion_parsed_by_the_sdk,
    response, response_parsed_by_the_sdk, message,
]  # fmt: skip


def annotation_of(answer: Any) -> Any:
    """What a user would write: the SDK's class, with the own model as its argument."""
    generic = type(answer).__pydantic_generic_metadata__
    bare = generic["origin"] or type(answer)
    return bare[User] if bare.__pydantic_generic_metadata__["parameters"] else bare


def state(value: Any) -> Any:
    """Everything a value consists of, as plain data that is equal only for equal types."""
    if isinstance(value, pydantic.BaseModel):
        parts = (value.__dict__, value.__pydantic_extra__, value.__pydantic_private__)
        return type(value), *map(state, parts), value.__pydantic_fields_set__
    if isinstance(value, dict):
        return {key: state(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(state, value))
    return type(value), value


def ask_in(path: Path, clock: Clock, answers: list[Any], annotation: Any) -> tuple[Any, SQLiteCache]:
    """The answer of a decorated function, asked with a cache object of its own on the file."""
    cache = SQLiteCache(path, clock=clock, deadline=5)

    @cached_ai_call(operation="ask", cache=cache)
    def ask(text: str) -> annotation:
        return answers.pop()

    return ask("q"), cache


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_an_answer_of_an_sdk_comes_back_with_all_its_state(
    make: Callable[[], Any], tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = make()
    expected, annotation = state(answer), annotation_of(answer)
    given, _ = ask_in(tmp_path / "cache.db", clock, [answer], annotation)
    assert given is answer

    for name in ("__init__", "model_validate", "__setstate__"):
        monkeypatch.setattr(pydantic.BaseModel, name, lambda *_, **__: pytest.fail("validated or constructed"))
    again, cache = ask_in(tmp_path / "cache.db", clock, [], annotation)
    monkeypatch.undo()

    assert type(again) is type(answer)
    assert again == answer
    assert state(again) == expected
    assert again.model_dump(warnings=False) == answer.model_dump(warnings=False)
    assert cache.stats().l2_hits == 1
    assert cache.stats().tokens_saved == 12


@pytest.mark.parametrize("make", [completion, response, message], ids=lambda make: make.__name__)
def test_the_classes_of_a_known_sdk_need_no_annotation(make: Callable[[], Any], tmp_path: Path, clock: Clock) -> None:
    for answers in ([make()], []):
        answer, _ = ask_in(tmp_path / "cache.db", clock, answers, Any)
        assert state(answer) == state(make())


@pytest.mark.parametrize("make", [completion, response, message], ids=lambda make: make.__name__)
def test_model_and_tokens_are_kept_beside_an_answer(make: Callable[[], Any], tmp_path: Path, clock: Clock) -> None:
    answer, cache = ask_in(tmp_path / "cache.db", clock, [make()], Any)
    ((blob,),) = cache._file.read("SELECT envelope FROM aimemo_entries")
    assert unseal(blob, blob[4:20]).facts == {"model": answer.model, "tokens": 12}


def test_a_restored_answer_can_be_changed_without_changing_the_next(tmp_path: Path, clock: Clock) -> None:
    cache = SQLiteCache(tmp_path / "cache.db", clock=clock, deadline=5)
    answers = [completion()]

    @cached_ai_call(operation="ask", cache=cache)
    def ask(text: str) -> Any:
        return answers.pop()

    for _ in range(3):
        answer = ask("q")
        assert state(answer) == state(completion())
        answer.choices[0].message.tool_calls.clear()
        answer.brand_new["deep"].append(2)


@pytest.mark.parametrize(
    "facts",
    [{"tokens": "many"}, {"tokens": float("nan")}, {"tokens": 2**70}, {"cost": "1 $"}, {"model": "\ud800"}],
    ids=repr,
)
def test_odd_facts_of_a_user_fail_neither_a_call_nor_the_stats(facts: Any, tmp_path: Path, clock: Clock) -> None:
    cache = SQLiteCache(tmp_path / "cache.db", clock=clock, deadline=5)
    calls: list[str] = []

    @cached_ai_call(operation="ask", cache=cache, facts=lambda answer: facts)
    def ask(text: str) -> str:
        calls.append(text)
        return "answer"

    for _ in range(3):
        assert ask("q") == "answer"
        cache.stats()
    assert calls == ["q"]
