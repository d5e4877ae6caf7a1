"""A plan counts the examples of sets that are not here."""

import pytest

from litevit_jax.data.sources import tfds
from litevit_jax.plan import examples
from tests import jobs


@pytest.fixture(autouse=True)
def nothing_is_here(monkeypatch):
    monkeypatch.setattr(tfds, "locate", lambda name: None)


@pytest.mark.parametrize("variant", [None, "imagenet2012"])
def test_imagenet_is_counted_whether_a_run_requires_it_or_not(variant):
    source, origin = examples.source(jobs.config("mae_tiny", variant).data)
    train = source("train")
    assert (len(train), len(train.classes), origin) == (1_281_167, 1000, "known")


def test_a_set_of_unknown_size_has_to_be_named():
    data = jobs.config("mae_tiny", "imagenet2012", data__name="sun397").data
    with pytest.raises(ValueError, match=r"sun397 is not here.*--config.data.dir=DIR"):
        examples.source(data)


def test_coco_is_counted_without_the_images_that_have_no_objects():
    source, origin = examples.source(jobs.config("detect", "coco").data)
    train = source("train2017")
    assert (len(train), len(train.classes), origin) == (117_266, 80, "known")
    assert train.annotations == ("objects",)
