"""Evaluation of a checkpoint: the same numbers as beside its pre-training."""

import json
import shutil

import pytest

from litevit_jax.train import loop, probe
from tests import jobs

SMALL = {
    "layers": {"name": "layers", "every_steps": 0},
    "fewshot": {"name": "fewshot", "shots": (1, 5), "seeds": 2, "every_steps": 0},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(pre-training's results, those of its checkpoint, the latter's workdir)."""
    root = tmp_path_factory.mktemp("runs")
    made = jobs.tiny(steps=2, evals=SMALL)
    trained = loop.run(made, root / "mae")
    made = jobs.config("layer_probe", None, init=str(root / "mae"), evals=SMALL)
    found = probe.run(made, root / "probe")
    return trained.results, found, root / "probe"


@pytest.mark.parametrize("title", SMALL)
def test_a_checkpoint_has_the_numbers_of_the_run_that_made_it(title, both):
    trained, found, _ = both
    ours, theirs = found.results[title]["last"], trained[title]["last"]
    assert (found.step, ours["step"], theirs["step"]) == (0, 0, 2)
    assert ours["n"] == 359 and ours["top1"] > 10
    # Other batches round otherwise; an image or two may fall on the other side.
    numbers = {k: v for k, v in theirs.items() if isinstance(v, float)}
    assert len(numbers) >= 3
    for name, value in numbers.items():
        assert ours[name] == pytest.approx(value, abs=0.6), name


def test_nothing_is_trained_and_what_is_done_is_not_done_again(both, monkeypatch):
    _, found, workdir = both
    assert not list((workdir / "checkpoints").glob("[0-9]*"))
    for title in SMALL:
        file = workdir / "evals" / title / "result.json"
        assert json.loads(file.read_text()) == found.results[title]
    monkeypatch.setattr(
        loop.Run, "evaluate", lambda *args: None if not args[3] else 1 / 0
    )
    init = str(workdir.parent / "mae")
    config = jobs.config("layer_probe", None, init=init, evals=SMALL)
    assert probe.run(config, workdir).results == found.results


def test_tables_are_recorded_but_not_said(both, capsys):
    _, found, workdir = both
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    written = [json.loads(row) for row in rows]
    tables = [row["layers/table"] for row in written if "layers/table" in row]
    assert tables == [found.results["layers"]["last"]["table"]]
    shutil.rmtree(workdir / "evals" / "fewshot")
    init = str(workdir.parent / "mae")
    made = jobs.config("layer_probe", None, init=init, evals=SMALL)
    assert probe.run(made, workdir).results == found.results
    said = capsys.readouterr().out
    assert "nothing is trained" in said and "step 0  fewshot: top1" in said
    assert "table" not in said.partition("fewshot:")[2] and "layers:" not in said
