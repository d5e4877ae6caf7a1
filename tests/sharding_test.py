"""Meshes and batch splits; the messages when they do not fit."""

import jax
import numpy as np
import pytest

from litevit_jax import sharding


def test_minus_one_takes_the_rest():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2}
    assert dict(sharding.make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}


@pytest.mark.parametrize("shape", [(3, 1), (-1, 3), (8, 2), (0, 1), (-1, -1)])
def test_a_mesh_that_is_not_all_devices_is_refused(shape):
    with pytest.raises(ValueError, match="mesh"):
        sharding.make_mesh(*shape)


def test_a_batch_that_does_not_split_names_batch_and_mesh():
    mesh = sharding.make_mesh(4, 2)
    match = r"batch_size=100 is not a multiple of 8 devices \(mesh data=4 x fsdp=2\)"
    with pytest.raises(ValueError, match=match):
        sharding.check_batch(100, mesh)
    sharding.check_batch(64, mesh)


def test_a_global_batch_keeps_its_rows_in_order():
    rows = {"index": np.arange(16, dtype=np.int32)}
    placed = sharding.global_batch(rows, sharding.make_mesh(4, 2))["index"]
    np.testing.assert_array_equal(jax.device_get(placed), rows["index"])
    assert placed.sharding.shard_shape((16,)) == (2,)


def test_more_ways_than_any_dimension_has_are_refused():
    mesh = sharding.make_mesh(1, 8)
    state = {"a": jax.ShapeDtypeStruct((4, 3), "float32"), "b": np.zeros(())}
    match = r"mesh.fsdp=8 is larger than any dimension .*at most 4.*mesh.fsdp=4"
    with pytest.raises(ValueError, match=match):
        sharding.check_fsdp(mesh, state)
    sharding.check_fsdp(mesh, state | {"c": np.zeros(9)})
    sharding.check_fsdp(sharding.make_mesh(4, 2), state)


def test_host_arrays_are_put_where_they_belong_and_votes_are_counted():
    mesh = sharding.make_mesh(2, 4)
    tree = {"w": np.arange(2**15, dtype=np.float32).reshape(128, 256)}
    shardings = sharding.tree_sharding(mesh, tree)
    placed = sharding.put(tree, shardings)["w"]
    assert placed.sharding.shard_shape((128, 256)) == (128, 64)
    np.testing.assert_array_equal(placed, tree["w"])
    assert int(sharding.most(mesh, 15)) == 15
