"""Every image is read once, and what is wrong with a data set is listed."""

import tarfile

import numpy as np
import pytest
from PIL import Image

from litevit_jax import cli
from litevit_jax.jobs import check


@pytest.fixture
def save(tmp_path):
    def save(name, value=0, size=(6, 4), mode="RGB"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, value).save(path)
        return path

    return save


@pytest.fixture
def run(tmp_path, capsys):
    """Returns the code and the lines of the command."""

    def run(*arguments, dir="set"):
        with pytest.raises(SystemExit) as ended:
            cli.parse(["litevit", "check", str(tmp_path / dir), *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, (out or err).splitlines()

    return run


def line_of(lines, start):
    [line] = [line for line in lines if line.startswith(start)]
    return line


def test_a_sound_folder_is_described_and_passes(save, run, tmp_path):
    for number in range(3):
        save(f"train/cat/{number}.jpg", 40 * number, (6, 4 + number))
    save("train/dog/a.png", 7, (90, 50), "L")
    save("test/cat/b.png", 9, (6, 4), "L")
    (tmp_path / "set" / "train" / "notes.txt").write_text("x")
    code, lines = run()
    assert code == 0
    assert lines[0].startswith("5 images, 5 of them readable, ")
    assert "kinds: 3 JPEG RGB, 2 PNG L" in lines
    assert line_of(lines, "sizes") == (
        "sizes: 6x4 to 90x50, median 6x5 (width x height), 4 in all"
    )
    assert "no images: 1 .txt" in lines
    start = lines.index(line_of(lines, "train: 4 images, labelled, 2 classes"))
    assert lines[start + 1] == "  images by class: cat 3, dog 1"
    start = lines.index(line_of(lines, "test: 1 image, labelled, 2 classes"))
    assert lines[start + 1] == "  images by class: cat 1, dog 0"
    assert lines[-2:] == ["duplicates by content: 0 in 0 groups", "bad: 0 of 5 images"]


def test_every_bad_file_is_listed_with_its_reason(save, run, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    path = save("cut.jpg")
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:700])
    save("good.jpg")
    (tmp_path / "set" / "empty.png").touch()
    (tmp_path / "set" / "text.jpg").write_text("no image")
    (tmp_path / "set" / "gone.jpg").symlink_to("nowhere")
    code, lines = run()
    assert code == 1
    start = lines.index("bad: 4 of 4 images")
    reasons = dict(line.strip().split(": ", 1) for line in lines[start + 1 :])
    assert list(reasons) == ["cut.jpg", "empty.png", "gone.jpg", "text.jpg"]
    assert "truncated" in reasons["cut.jpg"] and reasons["gone.jpg"] == "broken link"
    assert reasons["text.jpg"].startswith("not an image (8 bytes)")


def test_equal_images_are_found_by_content_those_in_both_splits_first(save, run):
    save("train/a/1.png", 1)
    save("train/a/2.png", 1)
    save("train/a/3.png", 2)
    save("test/a/9.png", 2)
    code, lines = run()
    assert code == 0
    start = lines.index(
        "duplicates by content: 2 in 2 groups; 1 of these are in several splits"
    )
    assert lines[start + 1 : start + 3] == [
        "  test/a/9.png = train/a/3.png (in test and train)",
        "  train/a/1.png = train/a/2.png",
    ]


def test_a_refused_layout_or_table_fails_after_all_images_were_read(
    save, run, tmp_path
):
    save("cat/1.jpg")
    save("2.jpg")
    code, lines = run()
    assert code == 1 and "2 images, 2 of them readable" in lines[0]
    assert "holds images directly" in line_of(lines, "refused: ")
    (tmp_path / "labels.csv").write_text("path,label\n2.jpg,x\ncat/3.jpg,y\n")
    code, lines = run(f"--labels={tmp_path / 'labels.csv'}")
    assert code == 1 and "row 3: got 'cat/3.jpg'" in line_of(lines, "refused: ")
    (tmp_path / "labels.csv").write_text("path,label\n2.jpg,x\ncat/1.jpg,y\n")
    code, lines = run(f"--labels={tmp_path / 'labels.csv'}")
    assert code == 0 and "  images by class: x 1, y 1" in lines


def test_other_sources_are_read_example_by_example(save, run, tmp_path):
    np.savez(
        tmp_path / "a.npz",
        train_image=np.arange(48).reshape(3, 2, 2, 4),
        train_label=np.array([0, 1, 1]),
    )
    code, lines = run("--source=arrays", dir="a.npz")
    assert code == 0 and "kinds: 3 array of int64, 4 channels" in lines
    assert "  images by class: 0 1, 1 2" in lines
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.add(save("1.jpg"), "1.jpg")
    code, lines = run("--source=tar", dir="x.tar")
    assert code == 0 and "kinds: 1 JPEG RGB" in lines


def test_a_wrong_command_ends_with_two(run, capsys, tmp_path):
    code, lines = run(dir="no")
    assert code == 2 and "does not exist; expected a folder" in lines[0]
    (tmp_path / "set").mkdir()
    code, lines = run("--threads=0")
    assert code == 2 and "--threads=0; expected 1 or more" in lines[0]
    code, lines = run("--source=digits", "--labels=x.csv")
    assert "takes no table of labels" in line_of(lines, "refused: ")
    with pytest.raises(SystemExit, match="2"):
        cli.parse(["litevit", "chek", "DIR"])
    assert "command 'chek' unknown; did you mean check?" in capsys.readouterr().err


def test_an_empty_folder_is_refused(run, tmp_path):
    (tmp_path / "set").mkdir()
    code, lines = run()
    assert code == 1 and "no image below" in line_of(lines, "refused: ")


def test_an_error_while_reading_is_a_reason():
    def read(number):
        raise PermissionError(13, "Permission denied", f"{number}.jpg")

    report = check.Report()
    check._look(report, ["0.jpg", "1.jpg"], read, threads=2)
    assert [name for name, _ in report.bad] == ["0.jpg", "1.jpg"]
    assert "Permission denied" in report.bad[1][1] and report.failed


def test_files_of_numbers_are_told_by_kind_and_other_channels_are_bad(run, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        image = np.full((8, 6, 12), number, np.uint16)
        np.save(folder / f"{number}.npy", image)
    code, lines = run()
    assert code == 0 and "kinds: 3 NumPy of uint16, 12 channels" in lines
    assert line_of(lines, "sizes: ").startswith("sizes: 6x8 to 6x8")
    np.save(folder / "few.npy", image[..., :4])
    np.save(folder / "no.npy", np.full((8, 6, 12), np.nan))
    (folder / "cut.npy").write_bytes((folder / "0.npy").read_bytes()[:-3])
    code, lines = run()
    start = lines.index("bad: 3 of 6 images")
    reasons = dict(line.strip().split(": ", 1) for line in lines[start + 1 :])
    assert code == 1 and reasons["few.npy"] == "4 channels; most images have 12"
    assert "takes 1152 bytes, the file has 1149" in reasons["cut.npy"]
    assert "576 of 576 pixels" in reasons["no.npy"]
    code, lines = run("--channels=4")
    start = lines.index("bad: 5 of 6 images")
    assert "0.npy: array [8, 6, 12] with 12 channels; expected" in lines[start + 1]
    assert run("--channels=0")[0] == 2
