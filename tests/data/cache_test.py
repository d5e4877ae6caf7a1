"""Images kept in memory are the same images."""

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import cache, decode, pipeline, transforms
from litevit_jax.data.sources import folder


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(7):
        size = (20 + i, 30, 3)
        image = PIL.Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image.save(tmp_path / f"{i}.{'png' if i % 2 else 'jpg'}")
    (tmp_path / "7.jpg").write_bytes(b"")
    return folder.make(split="train", dir=str(tmp_path))


def _keep(source, gib=1.0):
    return cache.keep(source, decode.Decode(3, 10**6), gib=gib, threads=2)


@pytest.mark.parametrize("make", [transforms.train_ops, transforms.eval_ops])
def test_batches_are_those_of_the_files(source, make):
    transform = make(image_size=(8, 8))
    kept = _keep(source)
    assert kept.in_memory and not source.in_memory
    assert kept.fingerprint() == source.fingerprint()
    for name in ("train_batches", "eval_batches"):
        options = {"seed": 3} if name == "train_batches" else {}
        streams = [
            getattr(pipeline, name)(
                s, transform, batch_size=4, threads=2, max_bad_fraction=0.5, **options
            )
            for s in (source, kept)
        ]
        for _ in range(2):
            one, two = (next(stream) for stream in streams)
            assert all(np.array_equal(one[key], two[key]) for key in one)
        assert list(streams[0].bad) == list(streams[1].bad) == ["7.jpg"]
        for stream in streams:
            stream.close()


def test_nothing_is_read_again(source, monkeypatch):
    kept = _keep(source)
    monkeypatch.setattr(folder.Folder, "__getitem__", lambda *_: pytest.fail("read"))
    assert kept[3]["image"].shape == (23, 30, 3) and kept[3]["label"] == -1


def test_labels_are_known_without_images_also_of_bad_files(image_folder):
    root = image_folder(train=2)
    (root / "train/b/001.png").write_bytes(b"")
    source = folder.make(split="train", dir=str(root))
    kept = _keep(source)
    labels = [kept.label_of(i) for i in range(len(kept))]
    assert labels == [source.label_of(i) for i in range(len(source))]
    assert labels == [0, 1]


def test_the_bound_is_kept(source):
    with pytest.raises(ValueError, match=r"more than data\.cache_gib=1e-06"):
        _keep(source, gib=1e-6)


def test_many_images_are_announced(source, monkeypatch, capsys):
    _keep(source)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(cache, "_MANY", 7)
    _keep(source)
    assert capsys.readouterr().out == "decoding 8 images ...\n"
