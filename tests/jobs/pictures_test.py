"""What a user sees of `predict` and `neighbours`: tables, files, pages, refusals."""

import importlib

import numpy as np
import pytest
from PIL import Image

import litevit_jax
from litevit_jax.evaluators import neighbours, predict
from litevit_jax.jobs import evaluate
from tests import jobs
from tests.report import examples

pytestmark = pytest.mark.usefixtures("shared_designs", "one_device")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run that tells the digits apart, at its start."""
    made = jobs.tiny("deit_tiny", steps=1)
    return jobs.saved_run(tmp_path_factory.mktemp("run") / "r", made, noise=True)


@pytest.fixture
def pictures(tmp_path):
    """A folder of six pictures, of which the third is none."""
    rng, root = np.random.default_rng(0), tmp_path / "pictures"
    for number in range(6):
        path = root / f"{'in/' * (number > 3)}{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (12, 9 + number), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "2.png").write_text("no picture")
    return root


def main(name, arg, workdir, **fields):
    made = importlib.import_module(f"litevit_jax.configs.{name}").get_config(arg)
    with made.unlocked():
        for field, value in fields.items():
            assert field in made
            made[field] = value
    return evaluate.main(made, str(workdir), "litevit")


def test_pictures_are_classified_as_evaluations_prepare_them(
    classifier, pictures, tmp_path, capsys
):
    target = tmp_path / "out" / "a.jsonl"
    fields = {"init": str(classifier), "images": str(pictures), "target": str(target)}
    ending = main("predict", None, tmp_path / "w", **fields, top=3)
    assert ending.result is None
    rows = predict.read(target, 99)
    assert [r.path for r in rows] == ["0.png", "1.png", "2.png", "3.png", *IN]
    assert "not an image" in rows[2].error and not rows[2].top
    encoder = litevit_jax.load(classifier)
    read = [pictures / r.path for r in rows if r.top]
    batch = np.stack([encoder.preprocess(path) for path in read])
    params = {"encoder": encoder.params, **encoder.others}
    batch = {"image": batch, "index": np.arange(5), "label": np.zeros(5, int)}
    out = encoder.objective.predict(params, encoder.model_state, batch)
    odds = np.exp(np.asarray(out["logits"], float))
    share = odds / odds.sum(axis=1, keepdims=True)
    for row, want in zip([r for r in rows if r.top], share, strict=True):
        order = np.argsort(-want)[:3]
        assert [name for name, _ in row.top] == [encoder.classes[k] for k in order]
        np.testing.assert_allclose([p for _, p in row.top], want[order], rtol=1e-4)
    printed = capsys.readouterr().out
    assert "2.png     not read: not an image (10 bytes)" in printed
    assert "1 of 6 images could not be read; the column 'error' says why" in printed
    sheet = target.with_suffix(".html").read_text()
    assert sheet.count('<img src="data:image/jpeg;base64,') == 5
    assert "not read: not an image" in sheet
    addresses = examples.Page(sheet).addresses
    assert all(x.startswith(("#", "data:")) for x in addresses)
    # The same recipe looks at other images in the same workdir.
    fields |= {"images": str(pictures / "0.png"), "target": None}
    main("predict", None, tmp_path / "w", **fields, sheet_images=0)
    [row] = predict.read(tmp_path / "w/predictions.csv", 9)
    assert row.path == str(pictures / "0.png") and len(row.top) == 5
    assert row.top[:3] == [(n, pytest.approx(p, rel=1e-6)) for n, p in rows[0].top]
    assert not (tmp_path / "w/predictions.html").exists()


IN = ["in/4.png", "in/5.png"]


def test_whatever_files_are_called_they_are_names_alone(encoder, tmp_path, capsys):
    pixels, root = np.arange(192, dtype=np.uint8).reshape(8, 8, 3), tmp_path / "in"
    names = ["<img src=x>.png", "a\nb.png", "c\udcff.png", 'ä & \U0001f600, ".png']
    root.mkdir()
    for name in names:
        Image.fromarray(pixels).save(path := root / "0.png")
        path.rename(root / name)
    fields = {"init": str(encoder), "images": str(root), "among": str(root), "top": 4}
    main("neighbours", None, tmp_path / "w", **fields)
    rows = neighbours.read(tmp_path / "w/neighbours.csv", 9)
    shown = [*names[:2], r"c\xff.png", names[3]]
    assert [row.path for row in rows] == shown
    assert [name for name, *_ in rows[0].nearest] == shown  # equally near, all read
    printed, page = capsys.readouterr().out, tmp_path / "w/neighbours.html"
    assert "a\\nb.png " in printed and r"c\xff.png 1.0000" in printed
    text = page.read_text(encoding="utf-8")
    assert text.count("<img") == 4 * 5 and "&lt;img src=x&gt;" in text


def test_labels_of_data_stand_beside_the_predictions_and_a_page_is_cut_off(
    classifier, tmp_path, capsys
):
    fields = {"init": str(classifier), "sheet_images": 7}
    main("predict", "digits", tmp_path / "w", **fields)
    rows = predict.read(tmp_path / "w/predictions.csv", 999)
    assert len(rows) == 359 and {row.label for row in rows} == set("0123456789")
    sheet = (tmp_path / "w/predictions.html").read_text()
    assert sheet.count("<img") == 7
    assert "Of 359 images these are the first 7" in sheet
    assert "... and 339 more" in capsys.readouterr().out


def refused(message, error=ValueError, name="predict", arg=None, **fields):
    with pytest.raises(error, match=message):
        main(name, arg, fields.pop("workdir"), **fields)


def test_what_is_missing_is_named_before_a_model_is_read(tmp_path, pictures):
    common = {"workdir": tmp_path / "w", "init": "nowhere"}
    refused(r"which images\? Give a picture, a folder, a pattern", **common)
    (tmp_path / "a.html").write_text("mine")
    fields = {"images": str(pictures), "target": str(tmp_path / "a.csv")}
    refused(
        r"a\.html, the page beside the target, is", FileExistsError, **common, **fields
    )
    assert not (tmp_path / "w").exists()


def test_a_model_without_a_head_is_refused_with_the_next_step(tmp_path, pictures):
    run = jobs.saved_run(tmp_path / "r", jobs.tiny())
    fields = {"init": str(run), "images": str(pictures), "workdir": tmp_path / "w"}
    refused("it has no head that tells classes apart. Train one", **fields)
    assert not (tmp_path / "w").exists()


def test_another_run_is_not_overwritten(classifier, pictures):
    before = (classifier / "config.json").read_bytes()
    fields = {"init": str(classifier), "images": str(pictures), "workdir": classifier}
    refused("holds a run with another config", **fields)
    assert (classifier / "config.json").read_bytes() == before


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A pre-training run, at its start."""
    folder = tmp_path_factory.mktemp("run") / "e"
    return jobs.saved_run(folder, jobs.tiny(), noise=True)


def test_neighbours_are_those_of_the_features_anew_and_from_a_file(
    encoder, pictures, tmp_path, capsys
):
    query, target = pictures / "in", tmp_path / "near.jsonl"
    fields = {"init": str(encoder), "images": str(query), "target": str(target)}
    fields |= {"pool": "avg", "top": 3}
    main("neighbours", None, tmp_path / "w", **fields, among=str(pictures))
    rows = neighbours.read(target, 99)
    assert [row.path for row in rows] == ["4.png", "5.png"]
    read = [f"{i}.png" for i in (0, 1, 3)] + IN
    model = litevit_jax.load(encoder)
    unit = litevit_jax.features(model, [pictures / x for x in read], "avg").astype(
        float
    )
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for row, own in zip(rows, unit[3:], strict=True):
        order = np.argsort(-(unit @ own))[:3]
        assert [name for name, *_ in row.nearest] == [read[i] for i in order]
        cosines = [cosine for *_, cosine in row.nearest]
        np.testing.assert_allclose(cosines, (unit @ own)[order], atol=1e-6)
        assert row.nearest[0][0] == f"in/{row.path}"  # it is in the folder itself
    assert "in/4.png 1.0000" in capsys.readouterr().out
    page = target.with_suffix(".html").read_text()
    assert page.count("<img") == 8 and page.count('class="tile first"') == 2
    # From a file, whose pictures are those of the folder that it records.
    target.rename(tmp_path / "before.jsonl")
    target.with_suffix(".html").unlink()
    file = str(tmp_path / "set.parquet")
    made = importlib.import_module("litevit_jax.configs.embed")
    made = made.get_config(f"data=files,path={pictures}")
    with made.unlocked():
        made.init, made.target, made.pool = str(encoder), file, "avg"
    evaluate.run(made, tmp_path / "e")
    main("neighbours", None, tmp_path / "w", **fields, among=file)
    assert target.read_bytes() == (tmp_path / "before.jsonl").read_bytes()
    assert target.with_suffix(".html").read_text() == page


def test_neighbours_in_a_data_set_are_training_images(encoder, tmp_path):
    fields = {"init": str(encoder), "sheet_images": 3, "top": 2}
    main("neighbours", "digits", tmp_path / "w", **fields)
    [row, *_] = neighbours.read(tmp_path / "w/neighbours.csv", 1)
    assert row.label in set("0123456789") and "train" in row.nearest[0][0]
    assert (tmp_path / "w/neighbours.html").read_text().count("<img") == 9


def test_what_is_searched_must_be_named_and_have_an_effect(tmp_path, pictures):
    common = {"workdir": tmp_path / "w", "init": "nowhere", "name": "neighbours"}
    refused("among which images", images=str(pictures), **common)
    message = "--config.among=x: images are searched among those of 'digits'"
    refused(message, arg="digits", among="x", **common)
    refused("which images", among="x", **common)
