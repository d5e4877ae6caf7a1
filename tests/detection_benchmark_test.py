"""The benchmark of a detector: its sides have one model and the same objects."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import detection, detection_sides, importable, sides
from litevit_jax.weights import detectron2


@pytest.mark.parametrize("size", detection_sides.SIZES)
def test_sizes_describe_the_model_and_travel_as_json(size):
    sizes = json.loads(json.dumps(detection_sides.sizes_of(size)))
    about, detector = detection_sides.SIZES[size], detection_sides.our_detector(size)
    assert sizes["num_classes"] == detector.mask_head.num_classes == about.classes
    assert sizes["grid"] == [about.pixels // sizes["patch_size"]] * 2
    assert sizes["rules"]["proposals"] == detector.rules.proposals
    spec = detection_sides.Spec(size, "step", batch=about.batch, sizes=sizes)
    assert detection_sides.Spec(**json.loads(spec.to_json())) == spec


def test_parameters_follow_from_their_names_alone():
    detector = detection_sides.our_detector("digits")
    params = detection_sides.jax_params(detection_sides.shapes_of(detector, "digits"))
    kernel = params["rpn"]["conv_0"]["kernel"]
    key = "proposal_generator.rpn_head.conv.conv0.weight"
    assert detectron2.our_name(key) == "rpn/conv_0/kernel"
    want = detection_sides.filled(key, (32, 32, 3, 3))
    np.testing.assert_array_equal(kernel, want.transpose(2, 3, 1, 0))
    assert (params["neck"]["p2"]["up_norm"]["scale"] == 1).all()
    assert not params["neck"]["p2"]["up_norm"]["bias"].any()


def test_objects_lie_within_their_images_and_the_others_are_padding():
    batch = detection_sides.host_batch("digits", 8, 56)
    about = detection_sides.SIZES["digits"]
    valid, boxes = batch["valid"], batch["boxes"]
    assert valid.sum(axis=1).tolist() == [about.objects] * about.batch
    assert (boxes >= 0).all() and (boxes <= about.pixels).all()
    assert (boxes[valid][:, 2:] - boxes[valid][:, :2] >= 11.9).all()
    assert not boxes[~valid].any()
    assert batch["masks"].shape == (about.batch, 8, 56 * 56 // 8)


def test_a_spread_of_ratios_is_that_of_the_rounds():
    got = detection.ratio([4.0, 9.0, 8.0], [2.0, 3.0, 2.0])
    assert got == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_the_whole_and_its_encoder_are_timed_by_the_same_rounds(monkeypatch):
    class Side:
        def __init__(self, cpu):
            self.cpu, self.rates = cpu, [1.0, 2.0]

        def measure(self, steps):
            pass

        def figures(self):
            return {}

    started = {
        "jax test": Side([4.0, 2.0]),
        "jax test of the encoder": Side([1.0, 1.0]),
    }

    class Ready:
        def __init__(self, every):
            assert list(every) == list(started)

        def __enter__(self):
            return started

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(detection, "ready", Ready)
    monkeypatch.setattr(detection, "specs", lambda *_: started)
    flags = {"ROUNDS": 2, "STEPS": 1}
    for name, value in flags.items():
        monkeypatch.setattr(detection, name, type("Flag", (), {"value": value}))
    figures = detection.compare({}, "test", peer=False)
    share = figures["jax test"]["% not the encoder"]
    assert share == {"median": 62.5, "min": 50.0, "max": 75.0}


def test_without_pytorch_the_program_tells_what_to_install(monkeypatch, capsys):
    def compare(sizes, part, peer):
        assert not peer
        return {f"jax {part}": {"images_per_s": sides.spread([1.0])}}

    monkeypatch.setattr(detection, "compare", compare)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    detection.flags.FLAGS(["detection.py", "--torch=/nowhere/python", "--size=digits"])
    detection.main([])
    out = capsys.readouterr().out
    assert "torch is left out: /nowhere/python cannot be run" in out
    assert "pip install torch==2.14.1 torchvision==0.29.1" in out
    assert "jax step: 1 (1..1) images_per_s" in out


def test_a_python_that_is_not_there_is_named():
    why = importable.missing("json", python="/nowhere/python")
    assert why == "/nowhere/python cannot be run: No such file or directory"
    assert importable.missing("json") is None


def test_pytorchs_modules_load_without_pytorch():
    code = (
        "import sys\nfrom benchmarks import detection_sides, torch_detection\n"
        "assert not {'jax', 'torch', 'litevit_jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=sides.ROOT, check=True)
