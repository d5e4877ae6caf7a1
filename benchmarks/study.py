"""Every pre-training method with one small encoder, judged alike: docs/results.md.

    python benchmarks/study.py --data=digits --out=runs/study-digits
    python benchmarks/study.py --data=DIR --out=runs/study-cifar

`DIR` holds CIFAR-10 as JPEG files, `train/<class>/*.jpg` and `test/<class>/*.jpg`. For
each seed it pre-trains with MAE, MoCo v3, distilled MAE (teacher: a wider MAE of the
same seed), its decoupled form and labels, then probes every encoder, and a random one,
with a linear classifier and k nearest neighbours on averaged patch tokens, and
fine-tunes it on 10 images of each class. All are ordinary runs of main.py under --out,
`--jobs` at a time, each with a share of the cores; a second call goes on where the first
stopped. Prints a table in Markdown, and writes every figure to results.json there.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import threading
import time

from absl import app, flags

DATA = flags.DEFINE_string("data", "digits", "'digits', or the folder of CIFAR-10.")
OUT = flags.DEFINE_string("out", None, "Where the runs go.", required=True)
SEEDS = flags.DEFINE_integer("seeds", 3, "How often everything is done.")
JOBS = flags.DEFINE_integer("jobs", 2, "Runs at the same time.")
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Print the commands, run nothing.")

ROOT = pathlib.Path(__file__).resolve().parents[1]

# method -> recipe. A random encoder has none.
PRETRAINED = {
    "mae": "mae_tiny",
    "mocov3": "mocov3_tiny",
    "distill": "mae_tiny_distill",
    "distill_d2": "mae_tiny_distill_d2",
    "supervised": "deit_tiny",
}
TITLES = {
    "random": "random initialisation",
    "supervised": "supervised",
    "mocov3": "MoCo v3",
    "mae": "MAE",
    "distill": "D-MAE",
    "distill_d2": "D2-MAE",
}
TAUGHT = ("distill", "distill_d2")

# Of CIFAR-10: the encoder, and what images of 32 pixels need.
_IMAGES = {
    "data.image_size": 32,
    "data.eval_crop_fraction": 1.0,
    "data.crop_scale": "0.2,1.0",
    "data.threads": 2,
}
_ENCODER = {
    "objective.encoder.variant": "None",
    "objective.encoder.patch_size": 4,
    "objective.encoder.width": 96,
    "objective.encoder.depth": 6,
    "objective.encoder.num_heads": 6,
}
_DECODER = {
    "objective.decoder.variant": "None",
    "objective.decoder.width": 48,
    "objective.decoder.depth": 1,
    "objective.decoder.num_heads": 3,
    "evals.reconstruction.every_steps": 0,
}
