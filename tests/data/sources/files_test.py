"""Named pictures: one, a folder, a pattern and a list, and what is refused."""

import os
import pickle

import pytest

from litevit_jax.data.sources import files

NAMES = ["b.png", "in/train/a.jpg", "in/ä x.png"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder whose images hold their own names, beside a text that is none."""
    for name in [*NAMES, "notes.md"]:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


def named(dir, split=".", **kwargs):
    """(name, bytes) of every example."""
    source = files.make(split=split, dir=dir, **kwargs)
    source = pickle.loads(pickle.dumps(source))
    assert not source.labelled and not source.classes
    assert [source.label_of(i) for i in range(len(source))] == [-1] * len(source)
    return [
        (source.name_of(i), source[i]["image"].decode()) for i in range(len(source))
    ]


def test_a_folder_is_read_whole_with_names_relative_to_it(root):
    assert named(str(root)) == [(name, name) for name in NAMES]
    assert named("images/in/") == [("train/a.jpg", NAMES[1]), ("ä x.png", NAMES[2])]


def test_a_picture_and_what_a_pattern_matches_are_named_as_they_were_given(root):
    assert named("images/b.png") == [("images/b.png", "b.png")]
    assert named("images/*.png") == [("images/b.png", "b.png")]
    both = [(f"images/{name}", name) for name in (NAMES[0], NAMES[2])]
    assert named("images/**/*.png") == both
    (root / "[1].png").write_bytes(b"one")  # a file of that name is no pattern
    assert named("images/[1].png") == [("images/[1].png", "one")]


def test_a_list_has_its_order_and_paths_from_its_folder(root):
    lines = f"\ufeffin/ä x.png\n\n  {root}/b.png \r\nin/ä x.png\n"
    (root / "list.txt").write_text(lines, encoding="utf-8")
    want = [
        ("in/ä x.png", NAMES[2]),
        (f"{root}/b.png", "b.png"),
        ("in/ä x.png", NAMES[2]),
    ]
    assert named("images/list.txt") == want


def test_what_a_list_names_and_cannot_be_read_is_an_example_all_the_same(root):
    os.mkfifo(root / "pipe.png")  # reading it would never end
    (root / "list.txt").write_text("gone.png\nb.png\nin\npipe.png\n")
    source = files.make(split=".", dir=str(root / "list.txt"))
    assert source[1]["image"] == b"b.png"
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        source[0]
    for index in (2, 3):
        with pytest.raises(OSError, match="is no regular file"):
            source[index]
    source.fingerprint()


def test_a_share_is_held_out_by_name_and_other_pictures_have_a_split_of_their_own(root):
    parts = [named(str(root), split, holdout=0.5) for split in ("train", "test")]
    assert sorted([*parts[0], *parts[1]]) == [(name, name) for name in sorted(NAMES)]
    assert named("gone", "among", among=str(root / "in"))[0][0] == "train/a.jpg"


def test_the_fingerprint_follows_names_and_sizes_wherever_the_folder_is(root, tmp_path):
    def prints(dir):
        return files.make(split=".", dir=str(dir)).fingerprint()

    before = prints(root)
    os.rename(root, tmp_path / "moved")
    assert prints(tmp_path / "moved") == before
    (tmp_path / "moved/b.png").write_bytes(b"longer")
    assert prints(tmp_path / "moved") != before


@pytest.mark.parametrize(
    ("dir", "error", "message"),
    [
        (None, ValueError, "no images are named; expected a picture, a folder"),
        ("gone.png", FileNotFoundError, r"'gone\.png' does not exist; expected a pic"),
        (
            "images/*.gif",
            FileNotFoundError,
            r"pattern 'images/\*\.gif' matches no file",
        ),
        ("empty", ValueError, "no image below empty"),
        ("empty.txt", ValueError, r"empty\.txt: got no line; expected the path of an"),
        ("latin.txt", ValueError, r"latin\.txt, line 2: got b'\\xe4'; expected UTF-8"),
    ],
)
def test_what_names_no_image_is_refused(dir, error, message, root, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"a.png\n\xe4.png\n")
    with pytest.raises(error, match=message):
        files.make(split=".", dir=dir)
