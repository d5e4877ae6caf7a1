"""Mean and deviation are those of all pixels, and the flags can be pasted."""

import shlex

import numpy as np
import pytest
from PIL import Image

from litevit_jax import cli
from litevit_jax.commandline import flags_for, parse


@pytest.fixture
def run(tmp_path, capsys):
    """Returns the code and the lines of the command."""

    def run(*arguments, dir=tmp_path):
        with pytest.raises(SystemExit) as ended:
            cli.parse(["litevit", "stats", str(dir), *arguments])
        out, err = capsys.readouterr()
        return ended.value.code, (out or err).splitlines()

    return run


def fields(line):
    """The values that a recipe has with the flags of the last line."""
    argv = ["litevit", "--config=mae_tiny", *shlex.split(line)]
    parse(argv, values := flags_for(argv))
    data, normalize = values.config.data, values.config.augment.normalize
    return data.channels, data.range, normalize.mean, normalize.std


pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_each_pixel_of_images_of_any_size_counts_once(run, tmp_path):
    rng, pixels = np.random.default_rng(0), []
    for number, (height, width) in enumerate([(5, 9), (30, 20), (8, 8)]):
        image = rng.integers(0, (256, 128, 64), (height, width, 3)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        pixels.append(image.reshape(-1, 3) / 255)
    code, lines = run()
    channels, value_range, mean, std = fields(lines[-1])
    whole = np.concatenate(pixels)
    assert code == 0 and (channels, value_range) == (3, None)
    np.testing.assert_allclose(mean, whole.mean(0), atol=6e-5)
    np.testing.assert_allclose(std, whole.std(0), atol=6e-5)
    assert lines[1] == "3 images, 709 pixels"


def test_grey_images_have_one_channel_unless_another_number_is_asked_for(run, tmp_path):
    Image.new("L", (4, 4), 51).save(tmp_path / "a.png")
    code, lines = run()
    assert code == 0 and fields(lines[-1]) == (1, None, (0.2,), (0.0001,))
    assert "channels whose pixels are all the same: 0" in lines
    assert len(fields(run("--channels=3")[1][-1])[2]) == 3


def test_a_range_is_proposed_for_more_than_eight_bits(run, tmp_path):
    values = np.arange(1000, 2000, dtype=np.uint16).reshape(20, 50)
    Image.fromarray(values).save(tmp_path / "a.png")
    channels, value_range, (mean,), _ = fields(run()[1][-1])
    low, high = np.percentile(values, [0.5, 99.5])
    given = [float(x) for x in value_range.split(",")]
    assert channels == 1 and given == [low, high] and abs(mean - 0.5) < 1e-3
    _, value_range, (mean,), _ = fields(run("--range=0,65535")[1][-1])
    assert value_range == "0,65535" and abs(mean - 1499.5 / 65535) < 1e-3


def test_arrays_have_a_mean_for_each_of_their_channels(run, tmp_path):
    images = np.zeros((2, 8, 8, 5), np.uint8)
    images[1] = [10, 20, 30, 40, 50]
    np.save(tmp_path / "a.npy", images)
    _, lines = run("--source=arrays", dir=tmp_path / "a.npy")
    channels, _, mean, std = fields(lines[-1])
    np.testing.assert_allclose(mean, np.arange(1, 6) * 5 / 255, atol=6e-5)
    np.testing.assert_allclose(std, np.arange(1, 6) * 5 / 255, atol=6e-5)
    assert channels == 5


def test_what_cannot_be_read_is_left_out_by_name_or_refused_if_it_is_all(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    code, lines = run()
    assert (
        code == 2 and "none of 1 images can be read; bad.png: not an image" in lines[0]
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    code, lines = run()
    assert code == 0 and "left out, as they cannot be read: 1 (bad.png)" in lines
    assert run("--split=tset")[0] == run("--channels=0")[0] == run("--range=x")[0] == 2


def test_files_of_any_number_of_channels_are_counted(run, tmp_path):
    rng, pixels = np.random.default_rng(0), []
    for number, (height, width) in enumerate([(5, 9), (30, 20), (8, 8), (9, 9)]):
        image = rng.integers(100, (500, 2000, 3000, 999, 700), (height, width, 5))
        image = image.astype((np.uint16, np.int16)[number % 2])
        if number < 2:
            np.save(tmp_path / f"{number}.npy", image)
        else:
            planes = np.moveaxis(image, -1, 0)
            np.save(tmp_path / f"{number}.npy", planes)
        pixels.append(image.reshape(-1, 5))
    np.save(tmp_path / "7.npy", rng.integers(0, 9, (8, 8, 2)))
    assert fields(run()[1][-1])[0] == 5  # as most that tell
    code, lines = run("--channels=5", "--range=0,4000")
    channels, value_range, mean, std = fields(lines[-1])
    whole = np.concatenate(pixels) / 4000
    assert code == 0 and (channels, value_range) == (5, "0,4000")
    np.testing.assert_allclose(mean, whole.mean(0), atol=1e-3)
    np.testing.assert_allclose(std, whole.std(0), atol=1e-3)
    assert any("1 of 5 images looked at have other channels" in x for x in lines)
    assert "left out, as they cannot be read: 1 (7.npy)" in lines
    proposed = fields(run("--channels=5")[1][-1])[1].split(",")
    assert 90 < float(proposed[0]) < 120 and 2500 < float(proposed[1]) < 3000
    for number in (0, 1, 7):
        (tmp_path / f"{number}.npy").unlink()
    code, lines = run()
    assert code == 2 and "2.npy: an array [5, 8, 8] looks like [C, H, W]" in lines[0]
