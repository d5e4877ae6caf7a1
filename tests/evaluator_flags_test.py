"""Evaluators that the command line adds to a recipe."""

import inspect
import re
import sys

import pytest
from absl import flags

from litevit_jax import cli, commandline, evaluator_flags, plugins, registry
from litevit_jax.data import splits

# ml_collections loads recipes in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)


def parsed(*arguments, recipe="mae_tiny:digits"):
    argv = ["main.py", f"--config={recipe}", *arguments]
    values = commandline.flags_for(argv)
    cli.parse(argv, values)
    return values["config"].value


def refused(capsys, *arguments, recipe="mae_tiny:digits"):
    with pytest.raises(SystemExit) as caught:
        parsed(*arguments, recipe=recipe)
    assert caught.value.code == cli.EXIT_USAGE
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--config.evals.near.name=knn", "--config.evals.near.k=7"),
        ("--config.evals.near.k", "7", "--config.evals.near.name", "knn"),
    ],
)
def test_a_name_adds_an_evaluator_with_its_defaults(arguments):
    config = parsed(*arguments, "--config.seed=3")
    assert config.seed == 3 and "reconstruction" in config.evals
    assert config.evals.near.to_dict() == {
        **{"name": "knn", "every_steps": 0, "k": 7, "split": "eval", "bank": "train"},
        **{"features": "features", "temperature": 0.07},
    }
    assert config.is_locked
    registry.check_fields(config)


def test_the_programs_own_flags_take_it_too(monkeypatch):
    argv = ["main.py", "--config=evaluate", "--config.evals.a.name=fewshot"]
    monkeypatch.setattr(sys, "argv", [*argv, "--config.evals.a.shots=(2,)"])
    cli.define(values := flags.FlagValues())
    cli.parse(sys.argv, values)
    assert values["config"].value.evals.a.shots == (2,)
    assert set(values["config"].value.evals) == {"a"}


def test_it_may_have_data_of_its_own():
    config = parsed(
        "--config.evals.near.name=knn",
        "--config.evals.near.data.source=folder",
        "--config.evals.near.data.dir=/a",
        "--config.evals.near.data.holdout.test=0.2",
    )
    block = config.evals.near.data.to_dict()
    assert block == {"source": "folder", "dir": "/a", "holdout": {"test": 0.2}}
    data = splits.evaluator_data("near", block, config.data)
    assert data["source"] == "folder" and data["eval_split"] == "test"


def test_its_data_have_the_fields_of_such_data():
    fields = {*evaluator_flags._DATA, "holdout", "options"}  # the last in recipes alone
    assert fields == {*splits._WHICH, *splits._HOW}
    assert set(evaluator_flags._HOLDOUT) == set(splits._WHICH["holdout"])


MISTAKES = {
    "name": (["x.name=knnn"], r"x.name=knnn: evaluator 'knnn' unknown; did you mean k"),
    "field": (
        ["x.name=knn", "x.bnk=train"],
        r"config.evals.x has no field 'bnk'; did you mean bank .*it has bank, every",
    ),
    "required field": (["x.name=real", "x.lables=a"], "did you mean labels"),
    "value": (["x.name=knn", "x.k=few"], r"x.k=few: expected a whole number, as in"),
    "no name": (["x.k=3"], r"no field 'x'; .*name it: --config.evals.x.name=NAME, of"),
    "title": (
        ["reconstrction.images=3"],
        r"no field 'reconstrction'; did you mean reconstruction\?",
    ),
    "field of its data": (["x.name=knn", "x.data.sorce=a"], "did you mean source"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_near_matches(name, capsys):
    fields, message = MISTAKES[name]
    err = refused(capsys, *(f"--config.evals.{field}" for field in fields))
    assert re.search(message, err) and "Traceback" not in err


def test_a_recipe_that_evaluates_nothing_has_none(capsys):
    err = refused(capsys, "--config.evals.x.name=knn", recipe="convert")
    assert "config has no field 'evals'" in err


def test_the_fields_are_the_keywords_of_make():
    for name in plugins.choices("evaluators"):
        block = evaluator_flags.named([("evals.x.name", name)], {})["x"].to_dict()
        keywords = inspect.signature(plugins.load("evaluators", name).make).parameters
        expected = set(keywords) - {"context"} | {"name", "every_steps"}
        extra = {"unmatched"} if name in ("classification", "confusion") else set()
        assert set(block) == expected | extra, name
        for key, default in registry.defaults("evaluators", name).items():
            assert block[key] in (default, None), f"{name}.{key}"


def test_an_evaluator_of_a_plug_in_is_added_alike(tmp_path, monkeypatch):
    path = tmp_path / "evaluators" / "spread.py"
    path.parent.mkdir()
    path.write_text("def make(*, context, split='eval', power: int = 2): ...\n")
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    config = parsed("--config.evals.s.name=spread", "--config.evals.s.power=3")
    assert config.evals.s.power == 3
