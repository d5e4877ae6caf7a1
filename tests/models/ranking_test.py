"""The largest numbers in order."""

import jax
import jax.numpy as jnp
import numpy as np

from litevit_jax import sharding
from litevit_jax.models import ranking


def test_equal_numbers_keep_their_order_and_beyond_them_there_is_nothing():
    x = np.float32([3, -np.inf, 7, 3, 7])
    values, index = ranking.largest(x, 4)
    assert values.tolist() == [7, 7, 3, 3] and index.tolist() == [2, 4, 0, 3]
    values, index = ranking.largest(x, 7)
    assert values[4:].tolist() == [-np.inf] * 3 and index.dtype == jnp.int32


def test_each_device_ranks_its_own_part_of_a_batch():
    mesh = sharding.make_mesh(data=8)
    rows = sharding.batch_sharding(mesh)
    x = jax.ShapeDtypeStruct((16, 50), jnp.float32, sharding=rows)
    rank = jax.jit(jax.vmap(lambda x: ranking.largest(x, 5)))
    text = rank.lower(x).compile().as_text()
    assert "sort" in text and "all-gather" not in text
