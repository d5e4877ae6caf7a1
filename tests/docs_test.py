"""The documents agree with the code: citations, defaults, links, commands, the site."""

import ast
import functools
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = (ROOT / "docs" / "recipes.md").read_text()
FOLDERS = ("litevit_jax", "configs", "tests", "benchmarks", "launch", "colabs")
SOURCES = [
    path
    for folder in FOLDERS
    for pattern in ("*.py", "*.sh", "*.ipynb")
    for path in sorted((ROOT / folder).rglob(pattern))
]
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


SITE = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site.py")
site = importlib.util.module_from_spec(SITE)
SITE.loader.exec_module(site)
PAGES = [path for path in site.sources() if path.suffix == ".md"]
names = pytest.mark.parametrize(
    "path", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES]
)


def prose(path):
    """The text of a page without its fenced code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S)


def links(path):
    """(file, anchor) of every link to a page or a picture of this repository."""
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(path)):
        if not re.match(r"\w+:", target):
            file, _, anchor = target.partition("#")
            yield (path.parent / file).resolve() if file else path, anchor


def anchors(path):
    """Anchors of a page's headings that no other heading of it has."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.M)
    slugs = [site.slug(re.sub(r"`|\*|\]\([^)]*\)|\[", "", text)) for text in headings]
    return {slug for slug in slugs if slugs.count(slug) == 1}


def test_links_and_anchors_are_read_as_github_reads_them(tmp_path):
    page, other = tmp_path / "a.md", tmp_path / "b.md"
    page.write_text(
        "# One, `two` (3)\n[b](b.md#x-y) [c](#one) <https://e.org> [e](https://e.org)\n"
        "## Same\n## Same\n```\n# no heading\n[d](d.md)\n```\n## A - [b](b.md) _c\n"
    )
    assert list(links(page)) == [(other, "x-y"), (page, "one"), (other, "")]
    assert anchors(page) == {"one-two-3", "a---b-_c"}


@names
def test_links_lead_to_files_and_headings_of_the_site(path):
    """So they work in the repository and on the site, which has no other files."""
    wrong = [
        (str(file.relative_to(ROOT)), anchor)
        for file, anchor in links(path)
        if not (file in site.sources() or (file / "README.md") in site.sources())
        or (anchor and anchor not in anchors(file))
    ]
    assert not wrong


def test_every_page_is_reached_from_the_readme_and_leads_back_to_it():
    readme = ROOT / "README.md"
    reached, new = set(), {readme}
    while new:
        reached |= new
        new = {f for path in new for f, _ in links(path) if f.suffix == ".md"} - reached
    assert set(PAGES) <= reached
    back = {path for path in PAGES if readme in {file for file, _ in links(path)}}
    assert {path for path in PAGES if path.parent.name == "docs"} <= back


def test_the_site_lists_every_page_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    assert sorted(pages(nav)) == sorted(str(p.relative_to(ROOT)) for p in PAGES)


def test_the_site_has_every_public_module():
    listed = {name for names in site.packages().values() for name in names}
    files = [p for p in (ROOT / "litevit_jax").rglob("*.py") if p.name[0] != "_"]
    assert {f"{'/'.join(name.split('.'))}.py" for name in listed} == {
        p.relative_to(ROOT).as_posix() for p in files
    }


def targets():
    """Names that `make` knows."""
    text = (ROOT / "Makefile").read_text()
    assert set(re.findall(r"^# make (\w+):", text, re.M)) <= rules(text)
    return rules(text)


def rules(makefile):
    return set(re.findall(r"^(\w+):", makefile, re.M))


def test_what_is_said_of_make_exists():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert set(phony[1].split()) == targets()
    for path in PAGES:
        code = re.findall(r"(?:^    |`)make (\w+)", path.read_text(), re.M)
        assert set(code) <= targets(), path.name


def test_the_hosted_checks_run_what_is_here():
    [path] = (ROOT / ".github" / "workflows").iterdir()
    workflow = yaml.safe_load(path.read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    commands = {step["run"] for step in steps if "run" in step}
    assert {".ci/run", "make docs"} <= commands
    for command in commands:
        program, *arguments = command.split()
        known = set(arguments) <= targets() if program == "make" else not arguments
        assert known and (program == "make" or os.access(ROOT / program, os.X_OK))
    actions = {step["uses"] for step in steps if "uses" in step}
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)
    assert {"3.11", "3.13"} <= {
        version
        for step in steps
        for version in step.get("with", {}).get("python-version", "").split()
    }


def test_the_site_is_built_with_the_tools_that_its_extra_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["docs"]
    pinned = (ROOT / "constraints" / "docs.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    tools = {re.match(r"[\w-]+", requirement)[0] for requirement in wanted}
    assert tools <= {line.partition("==")[0] for line in pinned}


# Stands in for Python: makes environments with itself inside, and notes what it runs.
PYTHON = """#!/bin/sh
case "$*" in
  "-c "*) ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *) echo "$*" >>calls; case "$*" in *" pip "*) exit "$OFFLINE" ;; esac ;;
esac
"""


def test_the_site_is_built_in_an_environment_that_is_made_once(tmp_path):
    (tmp_path / "constraints").mkdir()
    for name in ("Makefile", "constraints/docs.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    calls = []
    for offline in ("1", "0", "0"):
        done = subprocess.run(
            ["make", "docs", "PYTHON=./python"],
            cwd=tmp_path,
            env=os.environ | {"OFFLINE": offline},
            capture_output=True,
            text=True,
        )
        assert bool(done.returncode) == (offline == "1")
        clear = "make docs: could not install the packages in constraints/docs.txt"
        assert (clear in done.stderr) == (offline == "1")
        words = [x.split() for x in (tmp_path / "calls").read_text().splitlines()]
        calls.append(["install" if "pip" in x else " ".join(x) for x in words])
        (tmp_path / "calls").unlink()
    build = "-m mkdocs build"
    assert calls == [["install"], ["install", build], [build]]
