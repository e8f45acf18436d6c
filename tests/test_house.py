"""The house stands: imports go down only, importing costs little, one world imports asyncio."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import aimemo

PACKAGE = Path(aimemo.__file__).parent
FLOORS = (
    ("errors", "seed_paths"),
    ("core",),
    ("link",),
    ("stores", "coordination"),
    ("caches",),
    ("measure",),
    ("setup",),
    ("cached", "compiled", "options", "identity", "memoized", "memoize"),
    ("management", "integrations", "testing"),
    ("__main__",),
)
FRONT = FLOORS[7]
LIBRARIES = {
    "link": {"redis", "msgpack", "xxhash"},
    "core": {"msgpack", "xxhash", "zstandard"},
    "management": {"typer", "rich", "openai", "fastapi", "pydantic", "prometheus_client", "uvicorn"},
    "integrations": {"opentelemetry"},
}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(height for height, names in enumerate(FLOORS) if name in names)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    own = part(path)
    for name in imports(path):
        if name.startswith("aimemo."):
            other = name.split(".")[1]
            is_same_part = other == own or (other in FRONT and own in FRONT)
            assert is_same_part or floor(other) < floor(own), f"{path} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_part_imports_only_its_libraries(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        assert top in sys.stdlib_module_names | {"aimemo"} | LIBRARIES.get(part(path), set()), f"{path} imports {name}"


def test_only_the_world_of_tasks_imports_asyncio() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in modules() if "asyncio" in set(imports(path))}
    inside = {"core/aio.py", "link/aio.py", "link/replies.py"}
    assert users == inside | {f"management/{name}.py" for name in ("bench", "commands", "demo")}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_aimemo_imports_nothing_else() -> None:
    loaded = loaded_by("import aimemo")
    assert {name for name in loaded if name.split(".")[0] == "aimemo"} == {"aimemo", "aimemo.seed_paths"}
    assert not loaded & {"inspect", "dataclasses", "asyncio", "logging", "msgpack", "zstandard", "hashlib"}


def test_decorating_imports_no_asyncio_no_sqlite_and_no_framework() -> None:
    loaded = {
        name.split(".")[0]
        for name in loaded_by(
            "from aimemo import cached_ai_call, InMemoryCache; f = cached_ai_call(cache=InMemoryCache())(abs); f(-1)"
        )
    }
    assert not loaded & {"asyncio", "sqlite3", "pydantic", "redis", "typer", "rich", "numpy", "fastapi", "openai"}


def test_every_public_name_is_there() -> None:
    for name in aimemo.__all__:
        assert getattr(aimemo, name) is not None
    assert set(aimemo.__all__) <= set(dir(aimemo))
    with pytest.raises(AttributeError, match="no_such_name"):
        aimemo.no_such_name  # noqa: B018


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_pickle_no_eval_of_stored_data(path: Path) -> None:
    assert not set(imports(path)) & {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
