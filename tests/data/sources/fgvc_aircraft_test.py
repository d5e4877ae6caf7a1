"""FGVC-Aircraft's lists and levels, on a small stand-in for the archive."""

import pytest

from litevit_jax.data.sources import fgvc_aircraft

LISTS = {
    "variant": {
        "train": [("3", "A300B4"), ("1", "F-16A/B")],
        "val": [("2", "747-200")],
        "test": [("4", "F-16A/B"), ("5", "747-200")],
    },
    "family": {"train": [("3", "A300")], "val": [("1", "F-16")], "test": []},
}


@pytest.fixture
def archive(tmp_path):
    """fgvc-aircraft-2013b, as the archive unpacks; images hold their number."""
    root = tmp_path / "fgvc-aircraft-2013b" / "data"
    (root / "images").mkdir(parents=True)
    for number in "12345":
        (root / "images" / f"{number}.jpg").write_bytes(number.encode())
    for level, splits in LISTS.items():
        splits = {**splits, "trainval": splits["train"] + splits["val"]}
        for split, pairs in splits.items():
            text = "".join(f"{image} {name}\n" for image, name in pairs)
            (root / f"images_{level}_{split}.txt").write_text(text)
    return root.parent


def read(dir, split, name=None):
    source = fgvc_aircraft.make(split=split, dir=str(dir), name=name)
    examples = (source[i] for i in range(len(source)))
    return [(e["image"].decode(), source.classes[e["label"]]) for e in examples]


def test_splits_are_those_of_the_lists_and_classes_are_sorted(archive):
    wanted = LISTS["variant"]
    for split in ("train", "val", "test"):
        assert read(archive, split) == wanted[split]
    assert read(archive, "trainval") == wanted["train"] + wanted["val"]
    source = fgvc_aircraft.make(split="test", dir=str(archive))
    assert source.classes == ["747-200", "A300B4", "F-16A/B"]
    assert source.name_of(0) == "4.jpg" and source.label_of(0) == 2


def test_the_folder_data_itself_and_another_level_can_be_named(archive):
    assert read(archive / "data", "train", "family") == [("3", "A300")]


def test_what_is_not_there_is_said(archive, tmp_path):
    with pytest.raises(ValueError, match=r"'tests' unknown; did you mean test\?.*val"):
        read(archive, "tests")
    with pytest.raises(ValueError, match=r"'variants' unknown; did you mean variant"):
        read(archive, "train", "variants")
    with pytest.raises(FileNotFoundError, match=r"no FGVC-Aircraft there.*unpack it"):
        read(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match=r"images_manufacturer_train.txt is mi"):
        read(archive, "train", "manufacturer")
    (archive / "data" / "images" / "5.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 2 .*first 5.jpg"):
        read(archive, "test")
