"""What a built package holds, and that it works where the repository is not."""

import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import litevit_jax
from litevit_jax import cli, recipes
from tests import processes

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = (
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "main.py",
)
# The guide's recipe, which derives from an installed one.
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
MINE = re.search(r"```python\n(from litevit_jax.configs .*?)```", GUIDE, re.DOTALL)[1]


def run(*command, cwd, **options):
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=600, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind, source, target):
    """Builds the 'sdist' or 'wheel' of the folder `source`; the file in `target`."""
    call = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
    out = run(sys.executable, "-c", call, cwd=source)
    return target / out.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(source archive, wheel that was built from it)."""
    folder = tmp_path_factory.mktemp("packaging")
    copy = folder / "copy"
    copy.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    for name in ("litevit_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    archive = build("sdist", copy, folder)
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return archive, build(
        "wheel", folder / archive.name.removesuffix(".tar.gz"), folder
    )


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """(an empty folder, the console command `litevit` of the unpacked wheel)."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(built[1]) as file:
        file.extractall(folder / "packages")
        [points] = [x for x in file.namelist() if x.endswith("entry_points.txt")]
        [(module, name)] = re.findall(
            r"^litevit = ([\w.]+):(\w+)$", file.read(points).decode(), re.M
        )
    command = folder / "litevit"
    command.write_text(
        f"import sys\nsys.path[0] = {str(folder / 'packages')!r}\n"
        f"from {module} import {name}\n"
        f"if __name__ == '__main__':\n    sys.exit({name}())\n"
    )
    (folder / "empty").mkdir()
    return folder / "empty", command


def test_the_wheel_holds_the_package_and_the_recipes_and_nothing_beside_them(built):
    with zipfile.ZipFile(built[1]) as file:
        names = [x for x in file.namelist() if ".dist-info/" not in x]
        inside = {name: file.read(name) for name in names}
    expected = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in (ROOT / "litevit_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {
        f"litevit_jax/configs/{path.name}": path.read_bytes()
        for path in (ROOT / "configs").glob("*.py")
    }
    assert inside == expected
    assert "litevit_jax/configs/mae_tiny.py" in names


def test_a_source_archive_has_what_runs_without_being_built(built):
    with tarfile.open(built[0]) as file:
        names = {x.partition("/")[2] for x in file.getnames()}
    assert {
        "main.py",
        "litevit_jax/configs/__init__.py",
        "configs/mae_tiny.py",
    } <= names


def test_the_version_is_in_one_place(built):
    assert PROJECT["dynamic"] == ["version"]
    assert built[1].name == f"litevit_jax-{litevit_jax.__version__}-py3-none-any.whl"


def test_setup_py_adds_nothing():
    lines = (ROOT / "setup.py").read_text().splitlines()
    assert lines[1:] == ["", "import setuptools", "", "setuptools.setup()"]


def test_every_requirement_has_a_version_that_was_tested():
    """Of the libraries that a run needs, and of the tools that tests need."""
    extras = PROJECT["optional-dependencies"]
    needed = [*PROJECT["dependencies"], *extras["export"], *extras["dev"]]
    names = {re.match(r"[\w.-]+", line)[0] for line in needed} - {"litevit_jax"}
    for generation in ("py311", "py312"):
        text = (ROOT / "constraints" / f"{generation}.txt").read_text()
        pinned = {flat(x.partition("==")[0]) for x in text.splitlines()}
        assert {flat(name) for name in names} <= pinned


def flat(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_an_installed_recipe_is_found_and_derived_from_in_any_directory(installed):
    folder, command = installed
    (folder / "mine.py").write_text(MINE)
    shown = run(
        sys.executable, command, "--config=mine.py:digits", "--help", cwd=folder
    )
    fields = {line.split()[0]: line for line in shown.splitlines() if " = " in line}
    assert fields["name"].split()[:3] == ["name", "=", "mine-digits"]
    assert re.search(r"epochs = 7 +# passes over the images", fields["epochs"])
    assert fields["seed"].endswith("# of everything that is random")
    shown = run(sys.executable, command, "--help", cwd=folder)
    assert "    litevit --config=mae_tiny:digits --config.seed=1\n" in shown
    assert "main.py" not in shown
    listed = shown.partition("\nrecipes:\n")[2]
    assert [line.split()[0] for line in listed.splitlines()[:-2]] == recipes.names()


def test_the_console_command_handles_sigterm_from_its_first_moments_on(installed):
    folder, command = installed
    arguments = [sys.executable, command, "--config=mae_tiny:smoke"]
    with subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE) as process:
        processes.until_sigterm_is_handled(process)
        process.terminate()
        assert process.wait(processes.PATIENCE_S) == cli.EXIT_PREEMPTED


def test_the_changelog_has_this_release_and_all_before_it_with_their_dates():
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *releases = re.findall(r"^## (.*)$", text, re.M)
    assert first == "Unreleased"
    parts = [re.fullmatch(r"(\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)", x) for x in releases]
    versions = [part[1] for part in parts]
    assert versions[-2:] == ["0.2.0", "0.1.0"]
    assert versions[0] == litevit_jax.__version__
    dates = [part[2] for part in parts]
    assert dates == sorted(dates, reverse=True)
    kinds = set(re.findall(r"^### (.*)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
