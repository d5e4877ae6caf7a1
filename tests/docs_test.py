"""The documents agree with the code: citations, defaults and links."""

import ast
import functools
import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
FOLDERS = ("litevit_jax", "configs", "tests", "benchmarks", "launch", "colabs")
SOURCES = [
    path
    for folder in FOLDERS
    for pattern in ("*.py", "*.sh", "*.ipynb")
    for path in sorted((ROOT / folder).rglob(pattern))
]
DOCS = sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("*.md"))
NUMBER = r"\d+(?:\.\d+)?"
CITATION = rf"\brecipes,? (?:sections? )?({NUMBER}(?:(?:,? and|,| to) {NUMBER})*)"
HEADINGS = set(re.findall(rf"^##+ ({NUMBER}) ", RECIPES, re.MULTILINE))


def cited(text):
    """Numbers of the sections of docs/recipes.md that a text cites."""
    flat = re.sub(r"\s+#?\s*", " ", text)  # a citation may go on in the next line
    lists = re.findall(CITATION, flat, re.IGNORECASE)
    return {number for each in lists for number in re.findall(NUMBER, each)}


def test_a_citation_is_read_however_it_is_written():
    text = '''(recipes 1.1 to 1.4) recipes, section 3. recipes
    # 5.1, 5.2: """Recipes 7 and 12"""'''
    assert cited(text) == {"1.1", "1.4", "3", "5.1", "5.2", "7", "12"}


def test_every_section_that_the_code_cites_exists():
    citing = {path: cited(path.read_text()) for path in SOURCES}
    del citing[pathlib.Path(__file__)]
    assert sum(bool(numbers) for numbers in citing.values()) > 40
    dangling = {
        str(path.relative_to(ROOT)): sorted(numbers - HEADINGS)
        for path, numbers in citing.items()
        if numbers - HEADINGS
    }
    assert not dangling


@functools.cache
def config_of(path, arg):
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    return module.get_config(arg or None)


def defaults():
    """(config, variant, field, text of its value) that docs/recipes.md states."""
    flat = re.sub(r"\n(?!\n)", " ", RECIPES)
    for path, arg, rest in re.findall(
        r"Defaults of `(configs/\w+\.py):?([^`]*)`: ([^\n]*)", flat
    ):
        for field, value in re.findall(r"`([\w.]+)=([^`]+)`", rest):
            yield path, arg, field, value


def plain(text):
    """The value that a text stands for; fractions as 3/4 are computed."""
    text = re.sub(r"(\d+)/(\d+)", lambda m: str(int(m[1]) / int(m[2])), text)
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


@pytest.mark.parametrize(("path", "arg", "field", "value"), list(defaults()))
def test_defaults_are_as_stated(path, arg, field, value):
    block = config_of(path, arg)
    for name in field.split("."):
        assert name in block, f"{path}:{arg} has no {field}"
        block = block[name]
    assert block == plain(value)


def test_defaults_of_every_method_are_stated():
    stated = {(path, arg) for path, arg, *_ in defaults()}
    assert len(stated) > 12
    assert len(list(defaults())) > 120


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    missing = [x for x in links if ":" not in x and not (path.parent / x).exists()]
    assert not missing
