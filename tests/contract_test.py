"""CONTRIBUTING lists every member of the contracts, and the names that parts share."""

import ast
import inspect
import pathlib
import re

import pytest

from litevit_jax.data.sources import base as sources
from litevit_jax.evaluators import base as evaluators

ROOT = pathlib.Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


def section(title):
    return re.search(rf"## {title}\n(.*?)\n## ", GUIDE, re.DOTALL)[1]


def members(cls):
    """Public members of a contract: name -> its arguments, None of an attribute."""
    names = {**inspect.get_annotations(cls), **vars(cls)}
    dunders = ("__getitem__", "__len__")
    return {
        name: list(inspect.signature(vars(cls)[name]).parameters)[1:]
        if inspect.isfunction(vars(cls).get(name))
        else None
        for name in names
        if name in dunders or not name.startswith("_")
    }


def required(cls):
    return cls.__abstractmethods__ | (
        {name for name in inspect.get_annotations(cls) if name not in vars(cls)}
    )


CONTRACTS = {
    "To add an evaluator": evaluators.Evaluator,
    "To add a source of data": sources.Source,
}


@pytest.mark.parametrize("title", CONTRACTS)
def test_the_guide_lists_every_member_and_which_are_required(title):
    cls = CONTRACTS[title]
    listed, needed = {}, set()
    for names, default in re.findall(r"^\| (`.*?) \| (.*?) \|", section(title), re.M):
        for name, call, arguments in re.findall(r"`(\w+)(\(([^)]*)\))?`", names):
            listed[name] = re.findall(r"\w+", arguments) if call else None
            needed |= {name} if default == "required" else set()
    assert listed == members(cls)
    assert needed == required(cls)


def shared():
    """Name -> where it is found, of the names that other parts look for."""
    rows = re.findall(
        r"^\| (`.*?) \| (`.*?) \|", section("Names that other parts look for"), re.M
    )
    return {
        name: where
        for names, where in rows
        for name in re.findall(r"`([\w/]+)`", names)
        if re.match(r"`(params|predict|health)`|metrics", where)
    }


def strings(folder, functions):
    """String constants inside the named functions of a folder's files."""
    for path in (ROOT / "litevit_jax" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


def test_what_evaluators_read_is_listed():
    known = {name for name, where in shared().items() if where == "`predict`"}
    read = {text for text in strings("evaluators", {"reads"}) if text.isidentifier()}
    read |= set(re.findall(r'"(features\w*)"', all_text("evaluators")))
    kinds = {name.partition("/")[0] for name in known}
    assert read <= kinds and {"logits", "features", "grid_rank"} <= read


def keys(folder, functions):
    """Keys of the dicts that the named functions of a folder's files write out."""
    for path in (ROOT / "litevit_jax" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name in functions:
                for part in ast.walk(node):
                    if isinstance(part, ast.Dict):
                        yield from (ast.unparse(key) for key in part.keys if key)
                    elif isinstance(part, ast.DictComp):
                        yield ast.unparse(part.key)


def test_what_objectives_log_of_their_health_is_listed():
    known = {name for name, where in shared().items() if where == "`health`"}
    logged = {
        re.sub(r"\{.*\}", "NN", key.removeprefix("f").strip("'\""))
        for key in keys("objectives", {"health", "describe", "of_features"})
    }
    assert known == logged


def all_text(folder):
    files = (ROOT / "litevit_jax" / folder).glob("*.py")
    return "".join(path.read_text() for path in files)
