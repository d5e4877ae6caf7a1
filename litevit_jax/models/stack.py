"""Applies transformer blocks one after the other, with less memory if asked to.

Blocks of equal shapes are traced and differentiated once per process, so a run of
twelve blocks starts almost as fast as a run of one. The compiler still sees every
block.

With `remat` only a block's input is kept for the backward pass, which computes the rest
again: about a third more arithmetic, for large models whose activations do not fit
(docs/performance.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from litevit_jax.models import layers


def run(
    module: nn.Module,
    make_block: Callable[..., layers.Block],
    count: int,
    x: jax.Array,
    *,
    rates: Any = None,
    drop_keys: jax.Array | None = None,
    last_query: int = 0,
    kinds: tuple[dict[str, Any], ...] = (),
    remat: bool = False,
) -> tuple[jax.Array, layers.Intermediates]:
    """Applies blocks `blocks_0` to `blocks_<count - 1>` to tokens `[B, T, D]`.

    Args:
      module: the parent of the blocks; call this from its compact method.
      make_block: (class, block=, drop_rate=, name=, parent=, **kind) -> a block.
      count: number of blocks.
      x: tokens.
      rates: rate of drop path in each block; None: 0.
      drop_keys: one typed key per example `[B]`, or None.
      last_query: `first_query` of the last block.
      kinds: further fields of each block, where they differ; (): of none.
      remat: see above.

    Returns:
      Tokens, and the intermediates of every block, as 'block_00/attn'.
    """
    rates = [0.0] * count if rates is None else [float(rate) for rate in rates]
    intermediates: layers.Intermediates = {}
    for i in range(count):
        first = last_query if i == count - 1 else 0
        kind = kinds[i] if kinds else {}
        params = module.get_variable("params", f"blocks_{i}")
        if params is None:  # creates them, or else Flax says which are missing
            block = make_block(layers.Block, block=i, name=f"blocks_{i}", **kind)
            x, of_block = block(x, None, first)
        else:
            rate = 0.0 if drop_keys is None else rates[i]
            # Its number is for initial values alone: blocks of a kind are equal here.
            block = make_block(layers.Block, drop_rate=rate, parent=None, **kind)
            apply = functools.partial(_apply, block, first)
            apply = jax.checkpoint(apply) if remat else apply
            x, of_block = apply(params, x, _keys(drop_keys, i))
        intermediates |= numbered(i, of_block)
    return x, intermediates


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(block, first_query, params, x, drop_keys):
    return block.apply({"params": params}, x, drop_keys, first_query)


def _keys(drop_keys, i):
    if drop_keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(drop_keys, i)


def numbered(i: int, intermediates: layers.Intermediates) -> layers.Intermediates:
    """Prefixes the names of block `i`'s intermediates: 'attn' -> 'block_00/attn'."""
    return {f"block_{i:02d}/{name}": y for name, y in intermediates.items()}
