"""Images per second of the input pipelines on this machine: ours and others'.

    python benchmarks/input_pipeline.py --folder=DIR
    python benchmarks/input_pipeline.py --folder=DIR --difference
    python benchmarks/input_pipeline.py --soak=30

Each side makes batches of 128 random crops (8 to 100 % of the area, flipped at random)
of 224 pixels from the JPEGs in DIR, on two cores, in its own process. The sides take
turns within a round, so that a slow minute of the machine hits all. Rates are given as
ratios to torchvision's in the same round, and as CPU time per image, which a busy
machine changes least.

    folder       ours, as training reads a folder
    pillow       the same with data.decoder=pillow
    packed       ours, the same images packed at a short side of 256
    two views    ours, two crops of each image: images are counted, not crops
    torchvision  DataLoader with 2 workers, Pillow, bicubic, ToTensor and Normalize
    tf.data      decode_and_crop_jpeg, bilinear with antialias, autotuned

The last two need pip install -e ".[bench]"; sides that cannot be imported, or fail, are
left out with a note. --difference compares random crops of the fast decoder with
Pillow's. --soak reads many small files at random for the given minutes and prints the
CPU time per image and the growth of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import importable

FOLDER = flags.DEFINE_string("folder", None, "JPEGs, in any subfolders.")
BATCHES = flags.DEFINE_integer("batches", 4, "Batches per measurement.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each side.")
SIDES = flags.DEFINE_list("sides", None, "Only these; default: all.")
SOAK = flags.DEFINE_float("soak", 0.0, "Minutes of reading small files instead.")
DIFFERENCE = flags.DEFINE_boolean("difference", False, "Compare pixels instead.")
SOAK_FILES = flags.DEFINE_integer("soak_files", 60_000, "Files to read then.")
JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
WORKER = flags.DEFINE_string("worker", None, "Internal: be this side.")
PACKED = flags.DEFINE_string("packed", None, "Internal: the packed images.")

BATCH, SIZE, CORES = 128, 224, 2
AHEAD = 5  # batches that a side may have read in advance: not counted
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS = ("folder", "pillow", "packed", "two views")
PEERS = {
    "torchvision": ("torch", "torchvision.transforms"),
    "tf.data": ("tensorflow",),
}

Batches = Iterator[Any]


def own_batches(name: str) -> Batches:
    """Batches of this package, as training reads them."""
    from litevit_jax.data import pipeline
    from litevit_jax.data import transforms as ops
    from litevit_jax.data.sources import folder, packed

    kind, path = (packed, PACKED.value) if name == "packed" else (folder, FOLDER.value)
    transform = ops.train_ops(
        image_size=(SIZE, SIZE),
        decoder="pillow" if name == "pillow" else "auto",
        views=2 if name == "two views" else 1,
    )
    source = kind.make(split="train", dir=path)
    if name != "pillow" and not transform.fast:
        print("  ours decodes with Pillow: simplejpeg or OpenCV is missing")
    return pipeline.train_batches(
        source, transform, batch_size=BATCH, seed=0, max_bad_fraction=1.0
    )


def torchvision() -> Batches:
    """Batches of PyTorch's DataLoader."""
    import PIL.Image

    torch: Any = importlib.import_module("torch")
    transforms: Any = importlib.import_module("torchvision.transforms")

    class Photos(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.files = jpegs()
            self.transform = transforms.Compose(
                [
                    transforms.RandomResizedCrop(
                        SIZE,
                        scale=(0.08, 1.0),
                        interpolation=transforms.InterpolationMode.BICUBIC,
                    ),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize(MEAN, STD),
                ]
            )

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, index: int) -> Any:
            with open(self.files[index], "rb") as file:
                return self.transform(PIL.Image.open(file).convert("RGB"))

    photos = Photos()
    # With replacement: no gap between epochs, which would be long for few files.
    sampler = torch.utils.data.RandomSampler(
        photos, replacement=True, num_samples=10**7
    )
    loader = torch.utils.data.DataLoader(
        photos, batch_size=BATCH, sampler=sampler, num_workers=CORES
    )
    return iter(loader)


def tf_data() -> Batches:
    """Batches of tf.data."""
    tf: Any = importlib.import_module("tensorflow")

    def read(path: Any) -> Any:
        encoded = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(encoded),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), antialias=True)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(image + 0.5, 0, 255), tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(jpegs())
    images = files.shuffle(len(jpegs())).repeat().map(read, tf.data.AUTOTUNE)
    batches = images.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return batches.as_numpy_iterator()


def jpegs() -> list[str]:
    """The files of --folder."""
    endings = (".jpg", ".jpeg")
    paths = sorted(str(p) for p in pathlib.Path(FOLDER.value or "").rglob("*"))
    return [path for path in paths if path.lower().endswith(endings)]


def serve(name: str) -> None:
    """Measures on each line of standard input, and prints a row of JSON."""
    makers: dict[str, Callable[[], Batches]] = {
        "torchvision": torchvision,
        "tf.data": tf_data,
    }
    batches = makers[name]() if name in makers else own_batches(name)
    next(batches)  # starts threads, workers and compilers
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        for _ in range(AHEAD):
            next(batches)
        start, cpu = time.perf_counter(), cpu_seconds()
        for _ in range(BATCHES.value):
            np.asarray(next(batches))
        row = {"seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu}
        print(json.dumps(row), flush=True)


def cpu_seconds() -> float:
    """CPU time of this process and of those below it, finished threads included."""
    ticks, family = 0, {os.getpid()}
    processes = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            processes[int(path.parent.name)] = fields
    for _ in range(3):  # children of children
        family |= {pid for pid, f in processes.items() if int(f[1]) in family}
    for pid in family:
        ticks += sum(int(processes[pid][field]) for field in (11, 12))
    return ticks / os.sysconf("SC_CLK_TCK")


def start(name: str, packed: str) -> subprocess.Popen[str]:
    """Starts a side in its own process; returns when it is ready to measure."""
    process = subprocess.Popen(
        [
            sys.executable,
            __file__,
            f"--worker={name}",
            f"--folder={FOLDER.value}",
            f"--packed={packed}",
            f"--batches={BATCHES.value}",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # with its workers it is stopped and continued
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
    )
    answer(process)
    return process


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """Reads the next row of a side; prints its other lines."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
        print(line, end="")
    raise RuntimeError(f"{process.args} ended with {process.wait()}")


def measure(names: list[str], packed: str) -> dict[str, list[dict[str, float]]]:
    """Measures the sides in turn; stops each, with its workers, out of its turn."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    sides: dict[str, subprocess.Popen[str]] = {}
    try:
        for name in names:
            try:
                sides[name] = start(name, packed)
            except RuntimeError as error:
                if name in OURS:
                    raise
                print(f"{name} is left out: {error}", flush=True)
                del rows[name]
                continue
            os.killpg(sides[name].pid, signal.SIGSTOP)
        for _, name in itertools.product(range(ROUNDS.value), rows):
            side = sides[name]
            os.killpg(side.pid, signal.SIGCONT)
            assert side.stdin is not None
            side.stdin.write("go\n")
            side.stdin.flush()
            rows[name].append(answer(side))
            os.killpg(side.pid, signal.SIGSTOP)
    finally:
        for side in sides.values():
            os.killpg(side.pid, signal.SIGKILL)
            side.wait()
    return rows


def report(rows: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Prints and returns the figures of each side."""
    images, figures = BATCHES.value * BATCH, {}
    base = "torchvision" if "torchvision" in rows else next(iter(rows))
    print(f"\n{'':12}  images/s   CPU ms/image   x {base} (range)     by CPU time")
    for name, own in rows.items():
        pairs = list(zip(rows[base], own, strict=True))
        ratios = [base_row["seconds"] / mine["seconds"] for base_row, mine in pairs]
        by_cpu = [base_row["cpu"] / mine["cpu"] for base_row, mine in pairs]
        figures[name] = {
            "images_per_s": statistics.median(images / r["seconds"] for r in own),
            "cpu_ms": statistics.median(1000 * r["cpu"] / images for r in own),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "ratio_cpu": statistics.median(by_cpu),
        }
        f = figures[name]
        print(
            f"{name:12}  {f['images_per_s']:8.0f}   {f['cpu_ms']:12.2f}   "
            f"{f['ratio']:5.2f} ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"{f['ratio_cpu']:12.2f}"
        )
    return figures


def difference() -> None:
    """Prints the difference of crops from Pillow's, in levels of 255."""
    from litevit_jax.data import transforms as ops

    files = [pathlib.Path(path).read_bytes() for path in jpegs()]
    for side in (224, 96, 32):
        quick, slow = (
            ops.train_ops(image_size=(side, side), flip=0.0, decoder=name)
            for name in ("fast", "pillow")
        )
        differences = []
        for number, file in enumerate(files):
            one, two = (
                make(file, np.random.Generator(np.random.Philox(number))).astype(int)
                for make in (quick, slow)
            )
            differences.append(np.abs(one - two).mean())
        print(
            f"{side} px: mean absolute difference {np.mean(differences):.2f}, largest "
            f"of one image {np.max(differences):.2f}, {len(differences)} images"
        )


def soak() -> None:
    """Reads small files at random and prints the resident size, ten times."""
    import PIL.Image

    from litevit_jax.data import pipeline
    from litevit_jax.data import transforms as ops
    from litevit_jax.data.sources import folder

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for number in range(SOAK_FILES.value):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(f"{root}/{number:06d}.jpg")
        stream = pipeline.train_batches(
            folder.make(split="train", dir=root),
            ops.train_ops(image_size=(32, 32), decoder="auto"),
            batch_size=BATCH,
            seed=0,
        )
        next(stream)
        sizes, images, begin, cpu = [], 0, time.monotonic(), time.process_time()
        for part in range(10):
            while time.monotonic() - begin < (part + 1) * SOAK.value * 6:
                next(stream)
                images += BATCH
            sizes.append(resident_mib())
            each = 1000 * (time.process_time() - cpu) / images
            print(
                f"{images:,} images, {sizes[-1]:.1f} MiB resident, {each:.3f} ms of "
                "CPU time each",
                flush=True,
            )
        stream.close()
        growth = sizes[-1] / sizes[0] - 1
        print(f"growth after the first tenth: {100 * growth:.2f} %")


def resident_mib() -> float:
    """Resident size of this process."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(argv: list[str]) -> None:
    del argv
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    if WORKER.value:
        return serve(WORKER.value)
    if SOAK.value:
        return soak()
    if not FOLDER.value or not jpegs():
        raise app.UsageError(f"--folder={FOLDER.value}: no JPEG there")
    if DIFFERENCE.value:
        return difference()
    wanted = {n: m for n, m in PEERS.items() if not SIDES.value or n in SIDES.value}
    peers = importable.usable(wanted)
    print(
        f"{len(jpegs())} JPEGs, {len(cores)} of {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f}; found "
        f"{', '.join(peers) or 'no other pipeline'}"
    )
    names = [n for n in (*peers, *OURS) if not SIDES.value or n in SIDES.value]
    with tempfile.TemporaryDirectory() as packed:
        command = [sys.executable, "-m", "litevit_jax.data.pack", FOLDER.value, packed]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figures = report(measure(names, packed))
    if JSON.value:
        pathlib.Path(JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
