"""Who may import whom, how large things may grow, and what is never used."""

import ast
import functools
import itertools
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "litevit_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the inside out: a part imports those of its own ring and of rings inside it.
RINGS = [
    {  # the core pre-trains and resumes
        *("array_digest", "augment", "checkpoint", "choices", "compilation", "cpu"),
        *("data", "distributed", "evaluators", "models", "objectives", "paths"),
        *("plugins", "preemption", "registry", "sharding", "terminal", "train"),
        "trees",
    },
    {"analysis", "warm_start", "weights"},
    {
        *("arguments", "commandline", "configs", "evaluator_flags", "exits", "jobs"),
        *("plan", "recipes", "report", "subcommands"),
    },
    {"__init__", "__main__", "api", "cli", "encoder"},
]
# Within the core: what imports none of the others, and what knows only these.
LEAVES = {"choices", "compilation", "cpu", "distributed", "paths", "sharding", "trees"}
MAY_IMPORT = {
    **{name: set() for name in LEAVES},
    "plugins": {"choices"},
    "registry": {"choices", "plugins"},
    "models": {"choices"},
    "augment": {"choices"},
    "preemption": {"distributed", "sharding"},
    "terminal": {"distributed", "preemption"},
    "checkpoint": {"distributed", "paths", "sharding", "trees"},
    "data": {*LEAVES, "registry", "terminal"},
    "objectives": {"choices", "models", "registry", "trees"},
    "evaluators": {
        *(*LEAVES, "checkpoint", "data", "preemption", "registry", "terminal"),
    },
}


@functools.cache
def parse(path):
    return ast.parse(path.read_text())


@functools.cache
def nodes_of(path):
    """All nodes of a file's syntax tree, outer ones first."""
    return tuple(ast.walk(parse(path)))


@functools.cache
def imports(path, *, late=True):
    """Dotted names of all that a file imports.

    `late`: also inside functions and for type checkers alone, not only when the file is
    imported itself.
    """
    names, nodes = [], [parse(path)]
    while nodes:
        node = nodes.pop(0)
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if late or not (typing or isinstance(node, ast.FunctionDef)):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(names)


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def ring_of(package):
    return next(i for i, ring in enumerate(RINGS) if package in ring)


LAWS = []


def law(function):
    """A law that each file keeps: path -> what breaks it there."""
    LAWS.append(function)
    return function


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_keeps_every_law(path):
    broken = {keeps.__name__: wrong for keeps in LAWS if (wrong := keeps(path))}
    assert not broken


@law
def a_ring_imports_inwards(path):
    package = package_of(path)
    ours = (name.split(".") for name in imports(path))
    used = {parts[1] for parts in ours if parts[0] == "litevit_jax" and parts[1:]}
    used -= {"__version__"}
    outwards = {name for name in used if ring_of(name) > ring_of(package)}
    return outwards | used - MAY_IMPORT.get(package, used) - {package}


def reached(start, *, late):
    """Files whose modules are imported when `start` is; `late` as for `imports`."""
    seen, left = set(), [start]
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in imports(path, late=late):
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                module = ROOT.joinpath(*parts[:end])
                files = (module.with_suffix(".py"), module / "__init__.py")
                left += [file for file in files if file.exists()]
    return seen


@pytest.mark.parametrize(
    ("start", "late", "most_files", "most_lines"),
    [("train/loop.py", True, 16, 2_300), ("jobs/train.py", False, 36, 5_200)],
)
def test_who_reads_the_core_reads_little(start, late, most_files, most_lines):
    files = reached(PACKAGE / start, late=late)
    lines = sum(len(path.read_text().splitlines()) for path in files)
    assert len(files) <= most_files and lines <= most_lines


CONFIG = r"(self\.)?_?config(\.\w+|\[.*\])+"


@law
def one_module_writes_into_configs(path):
    writers = []
    for node in nodes_of(path):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        for target in filter(None, targets):
            if isinstance(target, ast.Attribute | ast.Subscript):
                writers += re.findall(f"^{CONFIG}$", ast.unparse(target))
        if isinstance(node, ast.Attribute) and node.attr in ("unlock", "unlocked"):
            writers.append(node.attr)
    # The command line adds evaluators to a config that no job has seen yet.
    files = (PACKAGE / "train" / "resolve.py", PACKAGE / "evaluator_flags.py")
    may = path.is_relative_to(PACKAGE / "configs") or path in files
    return [] if may else writers


def test_most_functions_take_the_values_that_they_use_and_no_whole_config():
    nodes = (node for path in FILES for node in nodes_of(path))
    arguments = [node for node in nodes if isinstance(node, ast.arg)]
    typed = [(x.arg, ast.unparse(x.annotation)) for x in arguments if x.annotation]
    assert 10 < typed.count(("config", "ConfigDict")) <= 30


@law
def recipes_are_read_in_one_place(path):
    where = ("configs", "litevit_jax.configs")
    used = {name for name in imports(path) if name.startswith(where)}
    text = [n.value for n in nodes_of(path) if isinstance(n, ast.Constant)]
    texts = [x for x in text if isinstance(x, str)]
    used |= {x for x in texts if re.match(r"(litevit_jax\.)?configs\.", x)}
    return set() if package_of(path) in ("configs", "recipes") else used


@law
def modules_and_functions_stay_small(path):
    lines = len(path.read_text().splitlines())
    large = [f"{lines} lines"] if lines > 400 else []
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            most = 90 if (path.name, node.name) == ("loop.py", "run") else 60
            large += [f"{node.name} has {lines} lines"] if lines > most else []
    return large


@law
def only_models_import_flax(path):
    flax = {name for name in imports(path) if name.split(".")[0] == "flax"}
    return set() if package_of(path) == "models" else flax - {"flax.struct"}


def test_near_matches_are_looked_for_in_one_place():
    importing = [path for path in FILES if "difflib" in imports(path)]
    assert importing == [PACKAGE / "choices.py"]


SAY_NOTHING = {
    *("found", "made", "ours", "place", "said", "some", "taught", "theirs", "there"),
    "told",
}
# The field of a format: `features.place` of an analysis.
KEPT = {("analysis/measure.py", "place")}


@law
def names_say_what_they_name(path):
    used = set()
    for node in nodes_of(path):
        for field in ("id", "arg", "attr", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str) and not isinstance(node, ast.alias):
                used.add(name.strip("_"))
    where = path.relative_to(PACKAGE).as_posix()
    return {(where, name) for name in used & SAY_NOTHING} - KEPT


@pytest.mark.parametrize(
    "folder",
    [
        *(".", "analysis", "augment", "data", "data/sources", "distributed"),
        *("evaluators", "jobs", "models", "objectives", "plan", "report", "train"),
        *("warm_start", "weights"),
    ],
)
def test_the_first_line_of_a_docstring_stands_alone(folder):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [
        (path.name, node)
        for path in sorted((PACKAGE / folder).glob("*.py"))
        for node in nodes_of(path)
        if isinstance(node, kinds)
    ]
    texts = [(name, ast.get_docstring(node)) for name, node in nodes]
    fragments = [
        (name, text.splitlines()[0])
        for name, text in texts
        if text and re.match(r"\W|(As|From|It|Of|On|See|That|Those|What)\b", text)
    ]
    assert not fragments


def annotations(path):
    """All annotations of a file: arguments, returned values and variables."""
    for node in nodes_of(path):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            yield node.returns


def test_annotations_of_training_name_a_type():
    paths = sorted((PACKAGE / "train").glob("*.py"))
    types = [ast.unparse(node) for path in paths for node in annotations(path)]
    assert len(types) > 500
    assert types.count("Any") / len(types) <= 0.02


@law
def names_are_translated_between_dots_and_slashes_in_one_place(path):
    text = re.sub(r"\s", "", path.read_text())
    pairs = re.findall(r"""replace\(["'][./]["'],["'][./]["']\)""", text)
    most = 2 if path == PACKAGE / "trees.py" else 0
    return len(pairs) != most and f"{len(pairs)} times, expected {most}"


@law
def private_parts_of_jax_are_used_in_one_place(path):
    private = [name for name in imports(path) if name.startswith("jax._src")]
    most = 2 if path.name == "jax_private.py" else 0
    return len(private) != most and f"{len(private)} imports, expected {most}"


@law
def programs_are_written_for_the_global_batch(path):
    nodes = nodes_of(path)
    used = {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    used |= {n.id for n in nodes if isinstance(n, ast.Name)}
    return used & {"pmap", "psum", "pmean", "all_gather", "axis_index"}


def test_the_loop_stays_short():
    lines = (PACKAGE / "train" / "loop.py").read_text().splitlines()
    assert len(lines) < 200


def test_main_only_starts_the_command_line():
    assert len((ROOT / "main.py").read_text().splitlines()) < 60
    assert imports(ROOT / "main.py") == ("litevit_jax.__main__.main",)
    assert len((PACKAGE / "__main__.py").read_text().splitlines()) < 60
    ours = [x for x in imports(PACKAGE / "__main__.py") if "litevit_jax" in x]
    assert ours == ["litevit_jax.preemption", "litevit_jax.cli"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=str)
def test_recipes_hold_values_only(path):
    ours = [x for x in imports(path) if not x.startswith("litevit_jax.configs.")]
    if path.name == "common.py":
        ours.remove("litevit_jax.plugins")  # it knows the names of sources
    assert {x.split(".")[0] for x in ours} <= {"difflib", "typing", "ml_collections"}


def code_lines(text):
    """Lines of a source that say something of its own.

    That leaves out docstrings, comments, imports, decorators, signatures, keywords that
    are passed on (`dtype=dtype,`) and lines of up to ten letters.
    """
    skipped = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = [*node.decorator_list, node][0]
            skipped |= set(range(first.lineno, node.body[0].lineno))
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    kept = {line.strip() for number, line in lines if number not in skipped}
    passed_on = re.compile(r"(\w+)=\1,?")
    return {
        line
        for line in kept
        if len(line) > 10 and line[0] != "#" and not passed_on.fullmatch(line)
    }


def test_lines_that_every_objective_needs_are_not_counted_as_shared():
    source = """
@dataclasses.dataclass(frozen=True)
class Masked(base.Objective):
    'A docstring.'

    def loss(
        self, params, batch
    ):
        # How it is computed.
        return mean_squares(
            prediction=prediction,
            target=batch["image"],
        )
"""
    assert code_lines(source) == {"return mean_squares(", 'target=batch["image"],'}


def test_no_two_objectives_share_over_a_quarter_of_their_lines():
    paths = sorted((PACKAGE / "objectives").glob("[!_]*.py"))
    assert len(paths) > 2
    lines = {path.name: code_lines(path.read_text()) for path in paths}
    for (one, a), (other, b) in itertools.combinations(lines.items(), 2):
        assert len(a & b) <= min(len(a), len(b)) / 4, f"{one} and {other}"


def test_importing_the_package_loads_neither_tensorflow_nor_torch():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path != PACKAGE / "data" / "prepare.py"
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print([n for n in ('tensorflow', 'torch', 'jax') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.strip().splitlines()[-1:] == ["['jax']"], done.stderr
