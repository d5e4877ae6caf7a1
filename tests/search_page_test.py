"""The commands of docs/search.md, run as they stand there with its smallest budget."""

import csv
import json
import pathlib
import re
import shlex
import string

import numpy as np
import pytest

from litevit_jax.evaluators import neighbours
from tests import processes

ROOT = pathlib.Path(__file__).parents[1]
CODE = r"^```python\n(?P<python>.*?)^```$|^(?P<shell>(?:    [^\n]*\n(?:\n(?=    ))?)+)"


def steps():
    """(kind, text) of the code of the page, in order; lines of a command are joined."""
    page = (ROOT / "docs" / "search.md").read_text()
    for match in re.finditer(CODE, page, re.S | re.M):
        if match["python"]:
            yield "python", match["python"]
            continue
        for line in match["shell"].replace("\\\n", " ").splitlines():
            if line.strip():
                yield "shell", line


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page was followed: its last `export` counts, the smallest budget."""
    directory = tmp_path_factory.mktemp("page")
    for name in ("main.py", "configs"):
        (directory / name).symlink_to(ROOT / name)
    budget, names = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        todo = []
        for kind, text in steps():
            words = shlex.split(text) if kind == "shell" else []
            if words[:1] == ["export"]:
                budget |= dict(word.split("=") for word in words[1:])
            else:
                todo.append((text, words))
        for text, words in todo:
            if not words:
                exec(text, names)
                continue
            words = [string.Template(word).substitute(budget) for word in words]
            assert words[:2] == ["python", "main.py"]
            log = directory / "log"
            run = processes.Fork(
                words[1:], log, directory=directory, JAX_NUM_CPU_DEVICES="1"
            )
            assert run.wait() == 0, log.read_text()
    assert list(budget) == ["EPOCHS", "DEPTH", "STEPS"]
    return directory, names


def test_every_picture_is_embedded_and_searched(folder):
    directory, _ = folder
    with np.load(directory / "photos.npz") as embedded:
        assert list(embedded["path"]) == [f"{n:04}.png" for n in range(1797)]
        assert np.isfinite(embedded["features"]).all()
    rows = neighbours.read(directory / "near.csv", 999)
    assert [row.path for row in rows] == [f"photos/{n}.png" for n in range(1700, 1797)]
    assert all(row.nearest[0][0] == row.path[7:] for row in rows)  # itself
    page = (directory / "near.html").read_text()
    assert page.count("<img") == 50 * 6 and "not in" not in page
    assert "1797" in (log := (directory / "log").read_text()).replace(",", "")
    assert "unreadable 0" in log and "could not be drawn" not in log


def test_names_are_learned_told_and_published(folder):
    directory, names = folder
    result = json.loads((directory / "runs/names/evals/knn/result.json").read_text())
    assert result["last"]["top1"] > 30  # an epoch, and ten digits
    assert (result["last"]["bank_n"], result["last"]["n"]) == (396, 104)
    rows = list(csv.DictReader((directory / "names.csv").read_text().splitlines()))
    assert len(rows) == 1797 and not any(row["error"] for row in rows)
    assert {row["class_1"] for row in rows} <= set("0123456789")
    assert (directory / "names.html").read_text().count("<img") == 200
    published = sorted(path.name for path in (directory / "published").iterdir())
    assert published == ["README.md", "config.json", "model.safetensors"]
    card = (directory / "published" / "README.md").read_text()
    assert "| licence | cc0-1.0 |" in card and "| test | top1 |" in card
    assert names["name"] == rows[-1]["class_1"]
    assert names["probability"] == pytest.approx(
        float(rows[-1]["probability_1"]), rel=1e-3
    )
