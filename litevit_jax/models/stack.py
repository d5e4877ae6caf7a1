"""Blocks one after the other: unrolled, or with less memory or a smaller program.

Unrolled blocks without rematerialisation are the fastest. `remat` keeps of a block for
the backward pass what enters it alone and computes the rest again: about a third more
arithmetic, for large models whose activations do not fit. `scan` compiles one block and
loops over it, for models so deep that compiling is long; parameters, which are stored
by block, are stacked anew at every step. What either costs: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from litevit_jax.models import layers

Found = dict[str, jax.Array]


def run(
    module: nn.Module,
    make_block: Callable[..., layers.Block],
    count: int,
    x: jax.Array,
    *,
    rates: Any = None,
    drop_keys: jax.Array | None = None,
    last_query: int = 0,
    remat: bool = False,
    scan: bool = False,
) -> tuple[jax.Array, Found]:
    """Blocks `blocks_0` to `blocks_<count - 1>` of `module` on tokens `[B, T, D]`.

    Args:
      module: whose children they are; called from its compact method.
      make_block: (class, block=, drop_rate=, name=) -> a block.
      count: of blocks.
      x: tokens.
      rates: of drop path in each block; None: 0.
      drop_keys: one typed key per example `[B]`, or None.
      last_query: `first_query` of the last block.
      remat, scan: see above.

    Returns:
      Tokens, and what is inside each block, as 'block_00/attn'.
    """
    rates = [0.0] * count if rates is None else [float(rate) for rate in rates]
    # The first argument of a checkpointed method is the module itself.
    cls = nn.remat(layers.Block, static_argnums=(3,)) if remat else layers.Block
    found: Found = {}
    start = 0
    if scan and not module.is_initializing():
        start = count - 1 if last_query else count
        x, found = _scan(module, make_block, cls, x, rates[:start], drop_keys)
    for i in range(start, count):
        block = make_block(cls, block=i, drop_rate=rates[i], name=f"blocks_{i}")
        first = last_query if i == count - 1 else 0
        x, inside = block(x, _keys(drop_keys, i), first)
        found |= numbered(i, inside)
    return x, found


def _scan(module, make_block, cls, x, rates, drop_keys):
    params = [module.variables["params"][f"blocks_{i}"] for i in range(len(rates))]
    if not params:
        return x, {}
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    drops = drop_keys is not None

    def body(x, of_block):
        weights, i, rate = of_block
        block = make_block(
            cls, block=0, drop_rate=rate if drops else 0.0, parent=None, name=None
        )
        return block.apply({"params": weights}, x, _keys(drop_keys, i), 0)

    each = (stacked, jnp.arange(len(rates)), jnp.asarray(rates, jnp.float32))
    x, inside = jax.lax.scan(body, x, each)
    # Of what nobody reads, nothing is stacked: jit removes it from the loop.
    found: Found = {}
    for i in range(len(rates)):
        found |= numbered(i, {name: y[i] for name, y in inside.items()})
    return x, found


def _keys(drop_keys, i):
    if drop_keys is None:
        return None
    return jax.vmap(jax.random.fold_in, (0, None))(drop_keys, i)


def numbered(i: int, inside: Found) -> Found:
    """What is inside block `i`, by names that say so."""
    return {f"block_{i:02d}/{name}": y for name, y in inside.items()}
