"""Mutants of one module: the module with one small mistake each."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip
REMOVABLE = (ast.Expr, ast.AugAssign, ast.Raise, ast.Delete, ast.Continue, ast.Break)


class Mutant(NamedTuple):
    line: int
    change: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """All mutants of a module, by line."""
    tree = ast.parse(source)
    for parent, field, at, node in sorted(_places(tree, False), key=lambda place: place[3].lineno):
        for changed in _changes(node):
            change = f"{_text(node)} -> {_text(changed)}"
            _put(parent, field, at, ast.copy_location(changed, node))
            yield Mutant(node.lineno, change, ast.unparse(ast.fix_missing_locations(tree)))
            _put(parent, field, at, node)


def _text(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:100]


def _put(parent: Any, field: str, at: int | None, node: ast.AST) -> None:
    if at is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[at] = node


def _places(parent: ast.AST, is_inside: bool) -> Iterator[tuple[ast.AST, str, int | None, Any]]:
    """Where something can be changed: not in annotations, and no statements of the module itself."""
    is_inside = is_inside or isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef)
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "bases", "format_spec"):
            continue
        for at, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(node, ast.AST):
                is_statement = isinstance(node, ast.stmt)
                if hasattr(node, "lineno") and (is_inside or not is_statement):
                    yield parent, field, at, node
                yield from _places(node, is_inside)


def _changed(node: Any, change: Callable[[Any], object]) -> Any:
    """A copy of a node, changed."""
    changed = copy.copy(node)
    change(changed)
    return changed


def _changes(node: Any) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            yield _changed(node, lambda new: setattr(new, "ops", [COMPARISONS[type(op)]()]))
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            yield _changed(node, lambda new: setattr(new, "op", ARITHMETIC[type(op)]()))
        case ast.BoolOp(op=op):
            yield _changed(node, lambda new: setattr(new, "op", ast.Or() if isinstance(op, ast.And) else ast.And()))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1)
        case ast.Return(value=ast.expr() as value) if _text(value) != "None":
            yield ast.Return(ast.Constant(None))
    is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    is_held = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    if (isinstance(node, REMOVABLE) and not is_docstring) or is_held:
        yield ast.Pass()
