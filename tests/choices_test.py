"""What a user is told who names something that does not exist."""

import pytest

from litevit_jax import choices
from litevit_jax.configs import common

LONG = [f"set_{i:03d}" for i in range(123)]


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("adam", ("adamw", "sgd"), "did you mean adamw? choose from adamw, sgd"),
        ("tinny", ("tiny", "tin", "huge"),
            "did you mean tiny or tin? choose from tiny, tin, huge"),
        ("x", ("adamw", "sgd"), "choose from adamw, sgd"),
        (None, {"avg": 1, "cls": 2}, "choose from avg, cls"),
        ("set_0071", LONG, "did you mean set_071 or set_007 or set_001?"),
    ],
)  # fmt: skip
def test_the_nearest_names_come_first_then_all(name, known, expected):
    assert choices.suggest(name, known) == expected


def test_of_a_long_list_that_has_nothing_near_the_beginning_is_given():
    text = choices.suggest("mnist", LONG)
    assert text.startswith("choose from set_000, set_001, ")
    assert text.endswith("set_039, ... (123 in all)")


def test_names_are_written_as_asked():
    text = choices.suggest("mae_tny", ["mae_tiny"], form="configs/{}.py")
    assert text == "did you mean configs/mae_tiny.py? choose from configs/mae_tiny.py"


def test_a_known_name_is_returned_and_any_other_refused():
    assert choices.check("pool", "avg", ("avg", "cls")) == "avg"
    with pytest.raises(ValueError) as caught:
        choices.check("pool", "averag", ("avg", "cls"))
    assert str(caught.value) == (
        "pool 'averag' unknown; did you mean avg? choose from avg, cls"
    )
    with pytest.raises(ValueError, match="pool None unknown"):
        choices.check("pool", None, ("avg", "cls"))


@pytest.mark.parametrize("name", ["moko", "x"])
def test_recipes_which_do_not_import_the_package_say_the_same(name):
    known = ["mae", "moco"]
    text = common.unknown("protocol", name, known)
    assert text == (
        f"variant protocol={name!r} unknown; {choices.suggest(name, known)}"
    )


def test_saved_configs_of_older_runs_get_the_names_of_today():
    old = {
        "batch_size_at_most": 16384,
        "lr": {"base": 0.1, "batch_if_chosen": 16384},
        "steps_at_least": 2000,
        "encoder_default": {"width": 64},
        "view_default": {"image_size": 8, "mean": [0.3]},
    }
    assert choices.upgrade(old) == {
        "auto_batch": {"at_most": 16384, "lr_batch": 16384, "steps_at_least": 2000},
        "fallback": {"encoder": {"width": 64}, "image_size": 8, "mean": [0.3]},
        "lr": {"base": 0.1},
    }
    data = {"validation_share": 0.2, "select_fraction": 0.1, "select_at_most": 9}
    old = {
        "data": {"holdout": 0.3, **data},
        "evals": {"knn": {"data": {"holdout": 0.0}}, "a": {"select_fraction": 0.1}},
        "sweep": {"validation_share": 0.4},
    }
    holdout = {"test": 0.3, "eval": 0.2, "select": 0.1, "select_at_most": 9}
    assert choices.upgrade(old) == {
        "data": {"holdout": holdout},
        "evals": {"knn": {"data": {"holdout": {"test": 0.0}}}, "a": {"holdout": 0.1}},
        "sweep": {"holdout": 0.4},
    }
    assert choices.upgrade({"file_normalize": {"mean": [0.5]}}) == {
        "fallback": {"mean": [0.5]}
    }
