"""The run's directory: whose it is, and files that survive a kill."""

import copy
import json
import shutil

import pytest

from litevit_jax import paths
from litevit_jax.train import eval_runner, workdir
from tests import jobs

CONFIG = {"seed": 0, "lr": {"base": 0.1}, "log": {"every_steps": 50}, "size": (8, 8)}


def test_differences_are_named_with_both_values():
    old = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 0, "list": [1, 2]}
    new = {"a": 1, "b": {"c": 5, "d": 3}, "new": {"x": 1}, "list": [1, 3]}
    assert workdir.differences(old, new) == [
        ("b.c", 2, 5),
        ("gone", 0, None),
        ("list", [1, 2], [1, 3]),
        ("new", None, {"x": 1}),
    ]
    assert workdir.differences(old, old) == []


def test_a_new_run_is_begun_and_the_same_one_resumed(tmp_path):
    assert workdir.open_run(tmp_path / "deep" / "run", CONFIG) is False
    assert workdir.open_run(tmp_path / "deep" / "run", CONFIG) is True
    saved = json.loads((tmp_path / "deep" / "run" / "config.json").read_text())
    assert saved == workdir.plain(CONFIG)
    assert saved["size"] == [8, 8]  # tuples and lists are the same to a config


def test_what_a_killed_start_leaves_does_not_stop_the_next(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pathlib.Path.replace", killed)
        workdir.open_run(tmp_path, CONFIG)
    assert any(tmp_path.iterdir())
    assert workdir.open_run(tmp_path, CONFIG) is False


def test_keys_that_cannot_matter_may_change_and_are_saved(tmp_path):
    workdir.open_run(tmp_path, CONFIG)
    assert workdir.open_run(tmp_path, CONFIG | {"log": {"every_steps": 1}})
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["log"] == {"every_steps": 1}


def test_what_follows_from_a_change_is_listed_only_where_nothing_else_is(tmp_path):
    saved = {**CONFIG, "derived": {"total_steps": 6, "train_fingerprint": "a"}}
    workdir.open_run(tmp_path, saved)
    other = {**saved, "seed": 1, "derived": {**saved["derived"], "total_steps": 8}}
    with pytest.raises(ValueError, match=r"now\):\n  seed: 0 -> 1\nresume it"):
        workdir.open_run(tmp_path, other)
    other = {**saved, "derived": {**saved["derived"], "train_fingerprint": "b"}}
    message = (
        r'of other training images; .*now\):\n  derived.train_fing.*: "a" -> "b"\nres'
    )
    with pytest.raises(ValueError, match=message):
        workdir.open_run(tmp_path, other)


def test_keys_that_matter_are_refused_and_listed_and_nothing_is_saved(tmp_path):
    workdir.open_run(tmp_path, CONFIG)
    other = {**CONFIG, "seed": 1, "lr": {"base": 0.2}, "log": {"every_steps": 1}}
    with pytest.raises(ValueError) as caught:
        workdir.open_run(tmp_path, other)
    text = str(caught.value)
    assert "  lr.base: 0.1 -> 0.2\n  seed: 0 -> 1\n" in text
    assert "log" not in text
    assert "another --workdir" in text
    assert json.loads((tmp_path / "config.json").read_text()) == workdir.plain(CONFIG)


def test_a_run_that_recorded_no_names_of_classes_goes_on(tmp_path):
    old = {"derived": {"num_classes": 2, "train_fingerprint": "a"}}
    workdir.open_run(tmp_path, old)
    new = {"derived": {**old["derived"], "classes": ["cat", "dog"]}}
    assert workdir.open_run(tmp_path, new) is True
    assert json.loads((tmp_path / "config.json").read_text()) == new


def test_a_run_whose_config_has_a_field_that_is_gone_goes_on_if_it_was_off(tmp_path):
    workdir.open_run(tmp_path, CONFIG | {"scan": False})
    assert workdir.open_run(tmp_path, CONFIG) is True
    assert json.loads((tmp_path / "config.json").read_text()) == workdir.plain(CONFIG)


def test_a_run_that_used_a_field_that_is_gone_is_told_what_to_do(tmp_path):
    workdir.open_run(tmp_path, CONFIG | {"scan": True})
    with pytest.raises(ValueError) as caught:
        workdir.open_run(tmp_path, CONFIG)
    text = str(caught.value)
    assert f"{tmp_path}/config.json has scan=True, and scan is gone" in text
    assert 'write "scan": false there' in text and "--config.remat=True" in text
    path = tmp_path / "config.json"  # what the message says leads on
    path.write_text(path.read_text().replace("true", "false"))
    assert workdir.open_run(tmp_path, CONFIG) is True


def older(config):
    """A config as runs recorded it before its fields had the names of today."""
    old = copy.deepcopy(config)
    chosen, known = old.pop("auto_batch"), old.pop("fallback")
    if chosen["steps_at_least"]:  # a probe's
        old |= {"batch_size_at_most": chosen["at_most"], "steps_at_least": 2000}
        old["lr"]["batch_if_chosen"] = chosen["lr_batch"]
    if known["encoder"]:
        old["encoder_default"] = known["encoder"]
    if known["mean"]:
        old["view_default"] = {k: x for k, x in known.items() if k != "encoder"}
    share = old["data"].pop("holdout")
    old["data"] |= {"holdout": share["test"], "validation_share": share["eval"]}
    old["data"] |= {"select_fraction": share["select"], "select_at_most": 20_000}
    old["accum_steps"] = 4
    del old["lr"]["decay"]
    for name in ("init_donor", "init_donor_load"):
        del old[name]
    if not old["init_required"]:
        del old["init_required"]
    return old


OLD = [("mae_tiny", "digits"), ("linear_probe", "digits"), ("finetune", "digits")]


@pytest.mark.parametrize(("name", "arg"), OLD)
def test_a_run_that_recorded_older_names_of_fields_goes_on(name, arg, tmp_path):
    new = jobs.config(name, arg).to_dict()
    old = workdir.plain(older(new))
    workdir.write_json(tmp_path / "config.json", old)
    assert workdir.open_run(tmp_path, new) is True
    new["auto_batch"]["at_most"] = 32
    with pytest.raises(ValueError, match=r"(?s)another config.*  auto_batch"):
        workdir.open_run(tmp_path, new)


def test_a_config_that_was_cut_short_is_named_with_a_way_out(tmp_path):
    path = tmp_path / "config.json"
    workdir.open_run(tmp_path, CONFIG)
    path.write_text(path.read_text()[:20])
    with pytest.raises(ValueError, match=r"config.json is damaged .*put a copy of it"):
        workdir.open_run(tmp_path, CONFIG)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", "[" * 100_000])
def test_a_file_of_a_run_that_holds_no_object_is_damaged(tmp_path, text):
    path = tmp_path / "evals" / "knn" / "result.json"
    path.parent.mkdir(parents=True)
    for damaged in (path, tmp_path / "config.json"):
        damaged.write_text(text)
    with pytest.raises(ValueError, match=r"knn/result.json is damaged .*move it"):
        eval_runner.record_result(tmp_path, "knn", {"step": 3, "top1": 1.0}, "top1")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        workdir.read_config(tmp_path)


def test_hidden_files_do_not_make_a_directory_a_strangers(tmp_path):
    (tmp_path / ".nfs0001").touch()
    assert workdir.open_run(tmp_path, CONFIG) is False


@pytest.fixture
def free(monkeypatch):
    def make(count):
        usage = shutil._ntuple_diskusage(10**9, 10**9 - count, count)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return make


def test_there_must_be_room_for_all_kept_checkpoints_and_one_more(tmp_path, free):
    free(5_600_000)
    workdir.check_space(tmp_path / "new" / "run", 1_000_000, keep=3)
    free(5_599_999)
    match = r"5.6 MB free, but 3 checkpoints of 1.4 MB and .* need 5.6 MB"
    with pytest.raises(OSError, match=match):
        workdir.check_space(tmp_path / "new" / "run", 1_000_000, keep=3)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_needs_room_for_what_is_not_there_yet(tmp_path, free):
    for step in (10, 20, 30):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    free(401_000)
    workdir.check_space(tmp_path, 1_000, keep=3)
    free(400_999)
    with pytest.raises(OSError, match=r"401 kB free.* of 401 kB .*free some space"):
        workdir.check_space(tmp_path, 1_000, keep=3)


def test_a_line_cut_by_a_kill_is_closed_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    paths.append_line(path, {"step": 1})
    path.write_bytes(path.read_bytes() + b'{"step": 2, "lo')
    paths.append_line(path, {"step": 2})
    lines = path.read_text().splitlines()
    assert lines[1] == '{"step": 2, "lo'
    assert [json.loads(line) for line in (lines[0], lines[2])] == [
        {"step": 1},
        {"step": 2},
    ]


def test_a_refused_second_run_of_a_process_leaves_the_first_its_lock(tmp_path):
    workdir.open_run(tmp_path, CONFIG)
    with pytest.raises(ValueError, match="holds a run with another config"):
        workdir.open_run(tmp_path, {**CONFIG, "seed": 1})
    assert (tmp_path / ".lock").exists()
    workdir.close_run(tmp_path)
    assert not (tmp_path / ".lock").exists()
