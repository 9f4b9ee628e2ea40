"""The stream gathered and scattered in ring steps: same loss, gradients and bytes as whole."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from helpers import (
    device_batch,
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    model_config,
    outside_and_inside,
    place,
    training_loss,
)
from jax.sharding import PartitionSpec as P

from paxlike.accounting.hlo_collectives import list_collectives
from paxlike.nn import ring
from paxlike.nn.collectives import Stored, on_devices
from paxlike.nn.numerics import Numerics

# Odd and even numbers of devices, and 2, whose shards travel half each way.
SIZES = (2, 3, 4, 5, 8)


@pytest.fixture
def in_ring(monkeypatch):
    monkeypatch.setattr(
        "helpers.numerics_of",
        lambda config: dataclasses.replace(
            Numerics.of(config.model, config.precision, "cpu"), ring=True
        ),
    )


@pytest.mark.parametrize("devices", SIZES)
def test_every_shard_is_one_piece(devices):
    with jax.set_mesh(mesh_of(model=devices)):
        found = ring.offsets()
    assert sorted(offset % devices for offset in found) == list(range(devices))
    assert max(map(abs, found)) == devices // 2


@pytest.mark.parametrize("devices", SIZES)
def test_gathered_and_scattered_are_those_of_the_whole_stream(devices):
    x_BTD = np.random.default_rng(0).normal(size=(2, 3, 6 * devices)).astype(np.float32)

    def device(x_BTD):
        pieces = ring.gathered_pieces(x_BTD)
        share = 1 + jax.lax.axis_index("model")
        return ring.joined(pieces), ring.Partial(tuple(share * p for p in pieces)).scattered()

    with jax.set_mesh(mesh_of(model=devices)):
        run = on_devices(device, P(None, None, "model"), (P("model"), P(None, None, "model")))
        on_mesh = jax.sharding.NamedSharding(jax.sharding.get_mesh(), P(None, None, "model"))
        whole, scattered = jax.jit(run)(jax.device_put(x_BTD, on_mesh))
    np.testing.assert_array_equal(whole, np.concatenate([x_BTD] * devices))
    np.testing.assert_allclose(scattered, x_BTD * sum(range(1, devices + 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ((1, 2, 4), {"kv_heads": 1, "remat": "full"}),
        (
            (1, 1, 8),
            {"kv_heads": 8, "attention_bias": "qkvo", "qk_norm": "head", "remat": "none"},
        ),
        ((2, 2, 2), {"kv_heads": 2, "block": "serial", "remat": "dots", "head": "untied"}),
    ],
    ids=["2x4 multi-query", "1x8 biases", "2x2x2 grouped serial"],
)
def test_loss_and_gradients_are_those_of_one_device(in_ring, changes, sizes):
    config = model_config(**changes)
    params, batch = host_params(config), host_batch(config)
    expected_loss, expected = loss_and_gradients(config, mesh_of(), params, batch)
    for kind, (loss, gradients) in outside_and_inside(
        config, mesh_of(*sizes), params, batch
    ).items():
        assert loss == pytest.approx(expected_loss, rel=1e-6), kind
        errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
        assert max(errors.values()) < 5e-6, (kind, errors)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_as_many_bytes_are_sent_as_whole(monkeypatch, in_ring, remat):
    config = model_config(layers=3, kv_heads=8, remat=remat)

    def sent():
        with jax.set_mesh(mesh_of(data=2, model=4)):
            step = jax.jit(functools.partial(training_loss, config))
            arguments = place(config, host_params(config)), device_batch(host_batch(config))
            text = step.lower(*arguments).compile().as_text()
        rows = list_collectives(text, {"pod": 1, "data": 2, "model": 4})
        bytes_of = collections.Counter()
        for row in rows:
            if row.in_loop:
                bytes_of[row.axis] += row.times * row.sent_bytes
        return bytes_of, {row.kind for row in rows if row.axis == "model" and row.in_loop}

    in_steps, kinds = sent()
    monkeypatch.undo()
    whole, _ = sent()
    assert in_steps == whole and kinds == {"collective-permute", "all-reduce"}


def test_pieces_wait_for_farther_ones_and_for_those_of_the_product_before():
    """Read in the lowered program: each barrier delays the beginning of a piece."""

    def device(x_BTF, w_FD):
        steps, w_FD = ring.RingSteps(), Stored(w_FD)
        static = "BTF,FD->BTD", ("model", None), "float32"
        partial = steps.multiply(static, x_BTF, w_FD) + steps.multiply(static, x_BTF, w_FD)
        return partial.scattered()

    places = P(None, None, "model"), P("model", None)
    with jax.set_mesh(mesh_of(model=4)):
        run = jax.jit(on_devices(device, places, P(None, None, "model")), in_shardings=places)
        traced = run.trace(
            jax.ShapeDtypeStruct((1, 2, 8), np.float32, sharding=places[0]),
            jax.ShapeDtypeStruct((8, 16), np.float32, sharding=places[1]),
        )
    barriers = re.findall("optimization_barrier (.*?) :", traced.lower().as_text())
    waits_for = [barrier.count(",") for barrier in barriers]
    assert waits_for == [1, 2, 3, 3 + 1, 3 + 2, 3 + 3]
