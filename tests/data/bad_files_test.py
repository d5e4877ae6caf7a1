"""Files as they come: each bad one is named, counted and left out; nothing hangs."""

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import filetree, pipeline, transforms, turbo
from litevit_jax.data.sources import folder

DECODERS = ["pillow", "fast"]


def _noise(width=40, height=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _encoded(kind, mode="RGB", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(_noise()).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _png_of(width, height):
    """A PNG that claims this size, in a few bytes."""

    def chunk(name, body):
        tail = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + tail

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def _jpeg_of(width, height):
    """A JPEG whose header claims this size."""
    jpeg = bytearray(_encoded("JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(jpeg)


GIF = [PIL.Image.fromarray(_noise()), PIL.Image.fromarray(255 - _noise())]
GOOD = {
    "cmyk.jpg": _encoded("JPEG", "CMYK"),
    "grey.jpg": _encoded("JPEG", "L"),
    "really-a-png.jpg": _encoded("PNG"),
    "really-a-jpeg.png": _encoded("JPEG"),
    "palette.png": _encoded("PNG", "P"),
    "transparent.webp": _encoded("WEBP", "RGBA"),
    "animated.gif": _encoded("GIF", save_all=True, append_images=GIF),
}
BAD = {
    "cut.jpg": _encoded("JPEG")[:-400],
    "cut-in-the-header.jpg": _encoded("JPEG")[:90],
    "cut.png": _encoded("PNG")[:-900],
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><title>404 Not Found</title>",
    "zeros.png": bytes(5000),
    "bomb.png": _png_of(50_000, 50_000),
    "bomb.jpg": _jpeg_of(50_000, 50_000),
}


@pytest.fixture
def root(tmp_path):
    for name, content in (GOOD | BAD).items():
        (tmp_path / name).write_bytes(content)
    sixteen = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    PIL.Image.fromarray(sixteen).save(tmp_path / "sixteen.png")
    for name in (b"latin-\xe9.jpg", b"bad-latin-\xe9.jpg"):
        content = b"" if name.startswith(b"bad") else _encoded("JPEG")
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(content)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    return tmp_path


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_bad_file_is_named_and_every_other_is_shown(root, decoder):
    if decoder == "fast" and turbo.choose("auto") != "fast":
        pytest.skip("simplejpeg or OpenCV is not installed")
    source = folder.make(split="train", dir=str(root))
    made = transforms.train_ops(image_size=(16, 16), decoder=decoder, max_pixels=10**6)
    stream = pipeline.train_batches(
        source, made, batch_size=len(source), seed=0, max_bad_fraction=1.0, threads=2
    )
    batch = next(stream)
    stream.close()
    assert set(stream.bad) == {*BAD, "bad-latin-\\xe9.jpg"}
    assert "1 broken link" in source.summary() and "dangling.jpg" in source.summary()
    assert "50000 x 50000" in stream.bad["bomb.png"]
    assert "50000 x 50000" in stream.bad["bomb.jpg"]
    names = {source.name_of(int(i)) for i in batch["index"]}
    assert names >= {*GOOD, "sixteen.png", os.fsdecode(b"latin-\xe9.jpg")}
    assert all(image.std() > 5 for image in batch["image"])


def test_more_than_the_limit_ends_the_run_with_the_list(root):
    source = folder.make(split="train", dir=str(root))
    made = transforms.eval_ops(image_size=(16, 16), max_pixels=10**6)
    stream = pipeline.eval_batches(source, made, batch_size=4, max_bad_fraction=0.1)
    with pytest.raises(pipeline.BadDataError, match="allows 1") as error:
        list(stream)
    assert len(stream.bad) == 2
    assert all(name in str(error.value) for name in stream.bad)


def test_a_file_without_permission_is_named_and_counted(root, monkeypatch):
    (root / "grey.jpg").chmod(0)
    if os.geteuid() == 0:  # root may read everything: what the others are told

        def refuse(path, *args, **kwargs):
            if os.fspath(path).endswith("grey.jpg"):
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return open(path, *args, **kwargs)

        monkeypatch.setattr(filetree, "open", refuse, raising=False)
    source = folder.make(split="train", dir=str(root))
    made = transforms.eval_ops(image_size=(16, 16), max_pixels=10**6)
    stream = pipeline.eval_batches(source, made, batch_size=8, max_bad_fraction=1.0)
    mask = sum(batch["mask"].sum() for batch in stream)
    assert "Permission denied" in stream.bad["grey.jpg"]
    assert mask == len(source) - len(stream.bad)
