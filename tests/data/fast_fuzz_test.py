"""The quick decoder on hostile headers, in a child process: it may die of them."""

import contextlib
import io
import pathlib
import struct
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from litevit_jax.data import decode, transforms, turbo

pytest.importorskip("cv2")
pytest.importorskip("simplejpeg")

ROOT = pathlib.Path(__file__).parents[2]
COLOUR = (200, 30, 40)


def _segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def _frame(marker, side):
    sampling = bytes.fromhex("011100021100031100")
    return _segment(marker, struct.pack(">BHHB", 8, side, side, 3) + sampling)


def _lossless(side, colour, hidden_behind=None):
    """A lossless JPEG (SOF3) of one colour: differences from the neighbour, all zero.

    The first pixel's differs from 128; its category has code 10, that of zero code 0.
    A reader that takes `hidden_behind`, a marker without length, for one that has a
    length skips the frame and sees a plain one, which is a comment.
    """
    differences = [value - 128 for value in colour]
    (category,) = {abs(d).bit_length() for d in differences}
    low = [d if d > 0 else d + 2**category - 1 for d in differences]
    bits = "".join("10" + format(x, f"0{category}b") for x in low)
    bits += "0" * (3 * (side * side - 1))
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    table = bytes([0, 1, 1] + [0] * 14) + bytes([0, category])
    start = bytes([3, 1, 0, 2, 0, 3, 0, 1, 0, 0])
    frame = _frame(0xC3, side)
    if hidden_behind is not None:
        skipped = struct.pack(">BBH", 0xFF, hidden_behind, 2 + len(frame) + 4)
        frame = skipped + frame + _segment(0xFE, _frame(0xC0, side))
    codes = _segment(0xC4, table) + _segment(0xDA, start) + scan
    return b"\xff\xd8" + frame + codes + b"\xff\xd9"


def _hidden():
    for marker in (0x00, 0x01, 0xD0, 0xD7):
        yield _lossless(640, COLOUR, hidden_behind=marker)


def _files():
    """(name, JPEG): those whose headers are changed."""
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8), 5, axis=0)
    image = PIL.Image.fromarray(pixels)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "plain": {},
        "444": {"subsampling": 0},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_rows": 1},
        "turned": {"exif": exif.tobytes()},
    }
    for name, options in kinds.items():
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90, **options)
        yield name, file.getvalue()
    for mode in ("L", "CMYK"):
        file = io.BytesIO()
        image.convert(mode).save(file, "JPEG")
        yield mode, file.getvalue()
    yield "lossless", _lossless(640, COLOUR)


def _mutated(encoded, rng):
    """`encoded` with one to three bytes of its header, or a marker, changed."""
    changed = bytearray(encoded)
    end = encoded.index(b"\xff\xda") + 16
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(2, min(end, len(changed) - 2)))
        how = rng.integers(5)
        if how == 0:
            changed[place] = rng.integers(256)
        elif how == 1:
            frame = changed.find(b"\xff", place)
            changed[frame + 1] = 0xC0 + rng.integers(64)
        elif how == 2:
            frames = [i for m in (0xC0, 0xC2) if (i := encoded.find(b"\xff%c" % m)) > 0]
            field = (frames or [place])[0] + rng.integers(1, 19)
            changed[field] = rng.choice([0, 1, 2, 3, 4, 8, 0x11, 0xC3, 255])
        elif how == 3:
            changed[place:place] = bytes([0xFF, rng.choice([0, 1, 0xC3, 0xD0, 0xDC])])
        else:
            del changed[place : place + int(rng.integers(1, 5))]
    return bytes(changed)


class _Guarded:
    """NumPy whose `empty` arrays lie between bytes that must stay, and are filled."""

    GUARD = 4096

    def __init__(self, fill):
        self.fill, self.kept = fill, []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * self.GUARD, self.fill, np.uint8)
        self.kept.append(memory)
        return memory[self.GUARD : self.GUARD + size].view(dtype).reshape(shape)

    def check(self):
        for memory in self.kept:
            for guard in (memory[: self.GUARD], memory[-self.GUARD :]):
                assert (guard == self.fill).all(), "written beyond the buffer"
        self.kept.clear()


def _decode_all(rounds):
    """Runs in the child: nothing is written outside, and nothing is left unwritten."""
    rng, decoded = np.random.default_rng(1), 0
    files = [*_files(), *(("hidden", file) for file in _hidden())]
    quick = transforms.train_ops(
        image_size=(8, 8), decoder="fast", crop_scale=(0.9, 1.0)
    )
    guards = [_Guarded(fill) for fill in (0, 255)]
    for number in range(rounds):
        name, file = files[number % len(files)]
        if number >= len(files):
            file = _mutated(file, rng)
        print(f"{name} {number} {file[:800].hex()}", flush=True)
        header = turbo.read_header(file)
        if header is not None and header.width * header.height < 2**22:
            for shrink in (1, 2, 8):
                both = []
                for guard in guards:
                    turbo.np = guard
                    how = {"channels": 3, "shrink": shrink, "bottom": 40}
                    both.append(turbo.decode(file, header, **how))
                    guard.check()
                assert (both[0] is None) == (both[1] is None)
                if both[0] is not None:
                    decoded += 1
                    assert np.array_equal(*both), "some of the buffer is not written"
        turbo.np = np
        with contextlib.suppress(decode.DecodeError):
            quick(file, np.random.default_rng(0))
    print("decoded", decoded)


def test_no_header_kills_the_process_or_leaves_memory_unwritten():
    program = "from tests.data import fast_fuzz_test as t; t._decode_all(1500)"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    *_, last = done.stdout.splitlines()
    assert done.returncode == 0, f"{last}\n{done.stderr[-2000:]}"
    word, count = last.split()
    assert word == "decoded" and int(count) > 100  # of plain files that survive


@pytest.mark.parametrize("crop_scale", [(0.1, 0.2), (0.9, 1.0)])
def test_a_lossless_jpeg_is_pillows(crop_scale):
    image = _lossless(640, COLOUR)
    assert turbo.read_header(image) is None
    quick = transforms.train_ops(
        image_size=(16, 16), decoder="fast", crop_scale=crop_scale
    )
    assert (quick(image, np.random.default_rng(0)) == COLOUR).all()


@pytest.mark.parametrize("marker", range(0xC3, 0xD0))
def test_only_huffman_coded_frames_of_dct_are_decoded(marker):
    _, plain = next(_files())
    assert turbo.read_header(plain) is not None
    frame = plain.index(b"\xff\xc0")
    other = plain[: frame + 1] + bytes([marker]) + plain[frame + 2 :]
    # A table of codes (C4) is skipped; the frame is then missing.
    assert turbo.read_header(other) is None


def test_a_frame_cannot_hide_behind_a_marker_without_length():
    for image in _hidden():
        assert turbo.read_header(image) is None
