"""A tiny labelled set and predictions that are looked up, for the evaluators' tests."""

import functools

import jax.numpy as jnp
import numpy as np

from litevit_jax import sharding
from litevit_jax.data import pipeline
from litevit_jax.data.sources import base as sources
from litevit_jax.evaluators import base


class Images(sources.Source):
    """`count` grey 4 x 4 images that are all different; labels as given."""

    def __init__(self, labels, num_classes):
        self.labels = labels
        self._classes = [str(k) for k in range(num_classes)]
        rng = np.random.default_rng(len(labels))
        shape = (len(labels), 4, 4, 1)
        self.images = rng.integers(0, 256, shape, dtype=np.uint8)

    @property
    def classes(self):
        return self._classes

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": int(self.labels[index])}

    def name_of(self, index):
        return str(index)

    def fingerprint(self):
        return ""


class Keep:
    """The image as it is."""

    shape = (4, 4, 1)

    def __call__(self, image, rng, out=None):
        del rng
        return image


def context(predict, *, tmp_path=None, batch_size=8, num_classes=0, **splits):
    """A Context whose splits ('eval', 'train') are Images."""
    batches = functools.partial(
        pipeline.eval_batches, transform=Keep(), batch_size=batch_size, threads=2
    )
    return base.Context(
        predict=predict,
        source=splits.__getitem__,
        batches=batches,
        mesh=sharding.make_mesh(4, 2),
        outdir=tmp_path,
        mean=(0.25,),
        std=(0.5,),
        num_classes=num_classes,
    )


def look_up(name):
    """A predict function: row `index` of the table that is the state's parameters."""

    def predict(params, model_state, batch):
        del model_state
        return {name: jnp.asarray(params)[batch["index"]]}

    return predict


def state(table):
    """A state whose parameters are `table`."""
    return base.Model(table, {})
