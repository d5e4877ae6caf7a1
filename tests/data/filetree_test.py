"""Trees list regular files, each real folder once, and name the rest."""

import os
import socket

import pytest

from litevit_jax.data import filetree


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    return root


@pytest.fixture
def tree(root):
    return filetree.open_tree(root)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def walk(tree, top="", **kwargs):
    skipped = {}
    return sorted(tree.walk(top, skipped, **kwargs)), skipped


def test_what_is_no_regular_file_is_named_with_its_kind(tree, root, monkeypatch):
    touch(root / "a.jpg")
    (root / "linked.jpg").symlink_to("a.jpg")
    (root / "broken.jpg").symlink_to("nowhere.jpg")
    (root / "below.jpg").symlink_to("a.jpg/b.jpg")
    (root / "self.jpg").symlink_to("self.jpg")
    (root / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe.jpg")
    monkeypatch.chdir(root)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.jpg")
        files, skipped = walk(tree)
    assert files == ["a.jpg", "linked.jpg"]
    assert skipped == {
        "broken.jpg": "broken link",
        "below.jpg": "broken link",
        "self.jpg": "link that refers to itself",
        "zero.jpg": "device",
        "pipe.jpg": "FIFO",
        "socket.jpg": "socket",
    }
    assert sorted(tree.files("")) == files and tree.folders("") == []


def test_a_folder_is_listed_by_its_own_path_however_many_links_lead_to_it(tree, root):
    touch(root / "m" / "1.jpg")
    for name in ("a", "z"):
        (root / name).symlink_to("m")
    files, skipped = walk(tree)
    assert files == ["m/1.jpg"]
    assert skipped == dict.fromkeys("az", "link to a folder that is listed already")
    assert tree.folders("") == ["a", "m", "z"]


def test_of_several_links_to_a_folder_elsewhere_the_first_is_followed(tree, root):
    touch(root.parent / "pool" / "deep" / "1.jpg")
    touch(root / "here.jpg")
    for name in ("b", "a", "c"):
        (root / name).symlink_to(root.parent / "pool")
    files, skipped = walk(tree)
    assert files == ["a/deep/1.jpg", "here.jpg"] and set(skipped) == {"b", "c"}


def test_folders_that_link_to_each_other_are_listed_once(tree, root):
    names = [f"f{number}" for number in range(12)]  # 12! paths
    for name in names:
        touch(root / name / "1.jpg")
        for other in names:
            (root / name / f"to_{other}").symlink_to(f"../{other}")
    files, skipped = walk(tree)
    assert files == [f"{name}/1.jpg" for name in sorted(names)]
    assert len(skipped) == 12 * 12


def test_no_link_leads_to_a_folder_above(tree, root):
    touch(root / "train" / "1.jpg")
    touch(root / "other" / "2.jpg")
    for number, target in enumerate((root / "train", root, root.parent, "/")):
        (root / "train" / f"link{number}").symlink_to(target)
    files, skipped = walk(tree, "train")
    assert files == ["1.jpg"] and len(skipped) == 4


def test_no_link_leads_into_a_barred_folder(tree, root):
    touch(root / "train" / "1.jpg")
    touch(root / "test" / "cat" / "2.jpg")
    touch(root / "tester" / "3.jpg")
    for number, target in enumerate(("../test", "../test/cat", "../tester")):
        (root / "train" / f"link{number}").symlink_to(target)
    (root / "train" / "file0.jpg").symlink_to("../test/cat/2.jpg")
    (root / "train" / "file1.jpg").symlink_to(root / "train" / "file0.jpg")
    (root / "train" / "file2.jpg").symlink_to("../tester/3.jpg")
    files, skipped = walk(tree, "train", barred=["test"])
    assert files == ["1.jpg", "file2.jpg", "link2/3.jpg"]
    barred = ["file0.jpg", "file1.jpg", "link0", "link1"]
    assert skipped == dict.fromkeys(barred, "link into another split")


def test_hidden_entries_and_leftovers_of_archivers_are_left_out(tree, root):
    for name in (".git/a.jpg", "__MACOSX/b.jpg", "@eaDir/c.jpg", ".d.jpg", "e.jpg"):
        touch(root / name)
    assert walk(tree) == (["e.jpg"], {})


def test_a_folder_that_may_not_be_listed_is_named(tree, root, monkeypatch):
    touch(root / "closed" / "1.jpg")
    scandir = os.scandir

    def refuse(path):  # root may list everything: what the others are told
        if os.fspath(path).rstrip("/").endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(filetree.os, "scandir", refuse)
    with pytest.raises(PermissionError, match="closed: you have no permission") as e:
        walk(tree)
    assert e.value.errno is None  # an error of the user's, not of the system
