"""An encoder for your programs: its parameters, and the images that it knows."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image

from litevit_jax import augment, paths
from litevit_jax.data import transforms
from litevit_jax.models import vit

_ROWS = 32  # images that are computed at once


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """A trained vision transformer, and the images that it knows.

    It is frozen: `dataclasses.replace(encoder, params=...)` gives one with other
    parameters, for example those that a training loop of yours has learned.

    >>> encoder = litevit_jax.load("runs/mae_tiny-smoke")
    >>> encoder
    Encoder(path='runs/mae_tiny-smoke', image_size=(8, 8), channels=1)
    >>> image = encoder.preprocess(np.zeros((28, 28), np.uint8))
    >>> tokens, intermediates = encoder.apply(image[None])
    >>> tokens.shape, intermediates["block_00/attn_probs"].shape
    ((1, 17, 24), (1, 2, 17, 17))

    Attributes:
      path: where it was read from.
      image_size: (H, W) of its images.
      channels: C.
      module: the flax module; `module.apply({"params": params}, images)` is what
        `apply` computes, for a loss of yours.
      params: its parameters, a nested dict of arrays; LayerNorm of a classifier and
        other parts of the run are not among them.
      mean, std: for each channel, by which pixels in 0..1 are normalised; None if
        nobody knows them.
      crop: the share of the shorter side that `preprocess` keeps.
      range: how pixels of more than 8 bits become bytes, as in `data.range`.
      classes: names of the classes that its head tells apart; () without a head.
      objective: what predicts in evaluations of the run.
      others, model_state: parameters of its other parts, and running statistics.
    """

    path: str
    image_size: tuple[int, int]
    channels: int
    module: vit.Encoder = dataclasses.field(repr=False)
    params: Any = dataclasses.field(repr=False)
    mean: tuple[float, ...] | None = dataclasses.field(repr=False)
    std: tuple[float, ...] | None = dataclasses.field(repr=False)
    crop: float = dataclasses.field(repr=False)
    range: str = dataclasses.field(repr=False)
    classes: tuple[str, ...] = dataclasses.field(repr=False)
    objective: Any = dataclasses.field(repr=False)
    others: dict[str, Any] = dataclasses.field(repr=False)
    model_state: Any = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        for name, low in (("mean", -math.inf), ("std", 0.0)):
            value = getattr(self, name)
            if value is None:
                continue
            given = value if isinstance(value, Iterable) else (value,)
            numbers = tuple(float(x) for x in given)
            good = all(low < x < math.inf for x in numbers)
            if given is not value or len(numbers) != self.channels or not good:
                kind = "positive" if name == "std" else "finite"
                raise ValueError(
                    f"{self.path}: got {name}={value!r}, expected a {kind} number for "
                    f"each of its {self.channels} channels, as {name}="
                    f"{(0.5,) * self.channels}"
                )
            object.__setattr__(self, name, numbers)

    def apply(self, images: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Encodes preprocessed images.

        Args:
          images: float `[B, H, W, C]`, stacked results of `preprocess`.

        Returns:
          Tokens `[B, 1 + N, D]`, the class token first, and every intermediate by
          name: 'block_00/in', 'block_00/attn_probs' ... (see `models.vit.Encoder`).
          Inside a `jax.jit` of yours only those that you use are computed.

        Raises:
          ValueError: bytes, or images of another shape.
        """
        return _apply(self.module, self.params, self.checked(images))

    def preprocess(self, image: Any) -> np.ndarray:
        """Prepares an image as an evaluation of the run does.

        The image is resized, the centre is cut out, and its bytes are normalised.

        Args:
          image: a path (in a store too), a PIL image, or an array `[H, W]` or
            `[H, W, C]` of bytes.

        Returns:
          Normalised float32 `[H, W, C]`.

        Raises:
          ValueError: it is no image, or cannot have the encoder's channels.
          OSError: the file cannot be read.
        """
        if self.mean is None or self.std is None:
            raise ValueError(
                f"{self.path} does not say how its images of {self.channels} channels "
                "were normalised; give a number for each: dataclasses.replace(encoder, "
                "mean=(...), std=(...))"
            )
        where, raw = _raw(image)
        transform = transforms.eval_ops(
            image_size=self.image_size,
            channels=self.channels,
            range=self.range,
            eval_crop_fraction=self.crop,
        )
        try:
            pixels = transform(raw, np.random.default_rng(0))  # it draws nothing
        except ValueError as error:
            several = getattr(raw, "ndim", 0) in (3, 4)
            hint = "; several images are a list, or an array [B, H, W, C]" * several
            raise ValueError(f"{where}: {error}{hint}") from None
        return np.asarray(_normalized(self.mean, self.std, pixels[None])[0])

    def checked(self, images: Any) -> jax.Array:
        """Returns `images` if they are preprocessed.

        Raises:
          ValueError: bytes, or images of another shape.
        """
        try:
            images = jnp.asarray(images)
        except (TypeError, ValueError):
            raise ValueError(
                f"{self.path}: got {type(images).__name__}, expected an array of "
                "images: np.stack of what encoder.preprocess(image) returns for each"
            ) from None
        expected = (*self.image_size, self.channels)
        floats = jnp.issubdtype(images.dtype, jnp.floating)
        if not floats or images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"{self.path}: got images {images.dtype}{list(images.shape)}, expected "
                f"floats [B, {', '.join(map(str, expected))}]: np.stack of what "
                "encoder.preprocess(image) returns for each"
            )
        return images

    def features(self, images: Any, pool: str | None = None) -> np.ndarray:
        """Computes features `[B, D]` of preprocessed images, see `api.features`."""
        given = (self._whole, self.model_state, self.checked(images))
        if pool is not None:
            return np.asarray(_pooled(self.module, pool, *given))
        return np.asarray(_predicted(self.objective, "features", *given))

    def logits(self, images: Any) -> np.ndarray:
        """Computes logits `[B, K]` of preprocessed images; see `api.predict`.

        Raises:
          ValueError: the model has no head that tells classes apart.
        """
        given = (self._whole, self.model_state, self.checked(images))
        return np.asarray(_predicted(self.objective, "logits", *given))

    @property
    def _whole(self) -> dict[str, Any]:
        """The parameters of all parts."""
        return {"encoder": self.params, **self.others}


@functools.partial(jax.jit, static_argnums=0)
def _apply(module: vit.Encoder, params: Any, images: jax.Array) -> Any:
    return module.apply({"params": params}, images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _normalized(mean: Any, std: Any, images: jax.Array) -> jax.Array:
    ops = augment.make({"normalize": {"mean": mean, "std": std}})
    return augment.apply(ops, jax.random.key(0), {"image": images})["image"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled(
    module: vit.Encoder, pool: str, params: Any, model_state: Any, images: jax.Array
) -> jax.Array:
    del model_state
    tokens, _ = module.apply({"params": params["encoder"]}, images)
    return vit.pool_tokens(tokens, pool)


# What to do where a prediction is missing.
_LACKING = {
    "features": "give pool='avg' or pool='cls'",
    "logits": "load a classifier: a probe or a fine-tuned run of this encoder, or a "
    "file with a head",
}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predicted(
    objective: Any, name: str, params: Any, model_state: Any, images: jax.Array
) -> jax.Array:
    """Returns a prediction `[B, ...]` of the objective by its name."""
    count = len(images)  # a batch as evaluators have it
    batch = {"image": images, "index": jnp.arange(count), "mask": jnp.ones(count)}
    batch["label"] = jnp.zeros(count, jnp.int32)
    predicted = objective.predict(params, model_state, batch)
    if name not in predicted:
        raise ValueError(
            f"the objective predicts no {name!r} ({', '.join(sorted(predicted))}); "
            f"{_LACKING[name]}"
        )
    return predicted[name]


def batches(
    encoder: Encoder, what: str, images: Any
) -> Iterator[tuple[np.ndarray, int]]:
    """Yields preprocessed images float32 `[B, H, W, C]`, and how many are real.

    The last rows are filled up: one shape compiles once.

    Args:
      encoder: prepares them.
      what: name of the caller, for messages.
      images: one or several, as `api.features` takes them.

    Raises:
      ValueError: no images, or one that cannot be read.
    """
    items = _listed(what, images)
    if not items:
        raise ValueError(f"{what} of no images: expected at least one image or path")
    for item in items:
        if isinstance(item, PIL.Image.Image):
            item.load()  # here: threads would read one file at a time in turns
    rows = min(_ROWS, len(items))
    shape = (*encoder.image_size, encoder.channels)
    with concurrent.futures.ThreadPoolExecutor() as threads:
        prepare = functools.partial(_prepared, encoder)
        for start in range(0, len(items), rows):
            part = items[start : start + rows]
            batch = np.zeros((rows, *shape), np.float32)
            batch[: len(part)] = np.stack(list(threads.map(prepare, part)))
            yield batch, len(part)


def _prepared(encoder: Encoder, image: Any) -> Any:
    if hasattr(image, "dtype") and np.issubdtype(image.dtype, np.floating):
        array = np.asarray(image)
        if not np.isfinite(array).all():
            raise ValueError(
                f"got an image {array.dtype}{list(array.shape)} with numbers that are "
                "not finite; expected what encoder.preprocess(image) returns"
            )
        return encoder.checked(array[None])[0]
    return encoder.preprocess(image)


def _listed(what: str, images: Any) -> list[Any]:
    """Lists images; a single one becomes a list of one."""
    if isinstance(images, str | os.PathLike | PIL.Image.Image):
        return [images]
    if hasattr(images, "ndim") and hasattr(images, "dtype"):
        if images.dtype.kind == "U":  # an array of paths
            return [str(path) for path in images.ravel()]
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Iterable) and not isinstance(images, Mapping | bytes):
        return list(images)
    raise ValueError(
        f"{what}: got {type(images).__name__}, expected paths, PIL images or arrays "
        "of bytes: one, a list of them, or an array [B, H, W, C]"
    )


def _raw(image: Any) -> tuple[str, Any]:
    """Returns what to call an image in a message, and what a data source would give."""
    if isinstance(image, PIL.Image.Image):
        if 0 in image.size:
            raise ValueError(f"got {image!r}, an image without pixels")
        # The transparency is dropped, which is not to change the caller's image.
        info = image.info
        return repr(image), image.copy() if "transparency" in info else image
    if isinstance(image, str | os.PathLike):
        file = paths.path(image)
        if not file.is_file():
            is_folder = file.is_dir()
            kind: type[OSError] = IsADirectoryError if is_folder else FileNotFoundError
            what = "is a folder; list its files" if is_folder else "is not there"
            raise kind(f"{image} {what}; expected the file of an image")
        return str(image), file.read_bytes()
    if hasattr(image, "shape") and hasattr(image, "dtype"):
        array = np.asarray(image)
        where = f"array {array.dtype}{list(array.shape)}"
        if array.dtype.kind in "iu" and array.dtype.itemsize > 2:
            # Which of 8 and 16 bits they span, nobody can tell.
            raise ValueError(
                f"got {where}; expected uint8 or uint16: convert it with "
                "array.astype(numpy.uint8)"
            )
        if array.dtype.kind != "f":
            return where, array
    raise ValueError(
        f"got {_kind(image)}; expected a path, a PIL image or an array of bytes [H, W] "
        "or [H, W, C]"
    )


def _kind(image: Any) -> str:
    dtype = getattr(image, "dtype", None)
    return type(image).__name__ if dtype is None else f"an array of {dtype}"
