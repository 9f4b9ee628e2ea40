"""Gradients of weights scattered over `data` in ring steps: equal sums, and as many bytes sent."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from helpers import (
    error,
    flat,
    host_batch,
    host_params,
    loss_and_gradients,
    mesh_of,
    model_config,
)
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from paxlike.accounting.hlo_collectives import list_collectives
from paxlike.nn import gradient_ring, ring
from paxlike.nn.collectives import Stored, on_devices
from paxlike.nn.numerics import Numerics


@pytest.fixture
def in_steps(monkeypatch):
    monkeypatch.setattr(gradient_ring, "DEVICE_KINDS", ("cpu",))


# Sizes with one ring (2, 3, 5), two of equal (4) and of different (6, 8) numbers of devices.
SIZES = (2, 3, 4, 5, 6, 8)
CASES = {
    "rows in x": (("BTD", "BTF", "DF"), ("data", "model")),
    "rows in dy": (("BTF", "BTD", "FD"), ("model", "data")),
    "heads": (("BTD", "BTNH", "DNH"), ("data", "model", None)),
}


def program(letters, places, devices):
    """(the jitted gradient of a weight, its arguments), float32."""
    sizes = {"B": 2 * devices, "T": 3, "D": 12 * devices, "F": 10, "N": 2, "H": 6}
    draws = np.random.default_rng(0)
    operands = [
        draws.normal(size=[sizes[letter] for letter in names]).astype(np.float32)
        for names in letters[:2]
    ]

    def device(x, dy):
        dtypes = "float32", "float32"
        return gradient_ring.scattered_product(letters, x, dy, places, dtypes)[0]

    run = on_devices(device, (P("data"), P("data")), P(*places))
    sharding = NamedSharding(jax.sharding.get_mesh(), P("data"))
    return jax.jit(run), [jax.device_put(x, sharding) for x in operands], operands


@pytest.mark.parametrize("devices", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_the_sum_is_that_of_the_whole_product(in_steps, case, devices):
    letters, places = CASES[case]
    with jax.set_mesh(mesh_of(data=devices)):
        run, arguments, (x, dy) = program(letters, places, devices)
        found = np.asarray(run(*arguments))
    equation = f"{letters[0]},{letters[1]}->{letters[2]}"
    expected = np.einsum(equation, x.astype(np.float64), dy.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("devices", SIZES)
def test_as_many_bytes_are_sent_as_by_a_reduce_scatter(monkeypatch, devices):
    mesh = {"pod": 1, "data": devices, "model": 1}

    def sent():
        with jax.set_mesh(mesh_of(data=devices)):
            run, arguments, _ = program(*CASES["rows in x"], devices)
            found = list_collectives(run.lower(*arguments).compile().as_text(), mesh)
        return {c.kind for c in found}, sum(c.times * c.sent_bytes for c in found)

    whole = sent()
    monkeypatch.setattr(gradient_ring, "DEVICE_KINDS", ("cpu",))
    steps = sent()
    assert whole[0] == {"reduce-scatter"} and steps[0] == {"collective-permute"}
    assert steps[1] == whole[1]


def test_every_part_but_the_first_waits_for_the_sum_that_it_hides(in_steps):
    """Otherwise the TPU compiler computes all parts first, and then waits for the permutations."""
    with jax.set_mesh(mesh_of(data=8)):  # 4 parts for each half of the columns
        run, arguments, _ = program(*CASES["rows in x"], 8)
        text = str(jax.make_jaxpr(run)(*arguments))
    assert text.count("optimization_barrier") == 2 * (4 - 1) and text.count("dot_general") >= 8


def test_an_odd_number_of_columns_is_scattered_whole(in_steps):
    with jax.set_mesh(mesh_of(data=2)):
        x, dy = (jax.ShapeDtypeStruct((2, 3, size), "float32") for size in (4, 5))
        run = on_devices(
            lambda x, dy: gradient_ring.scattered_product(
                ("BTD", "BTF", "DF"), x, dy, ("data", "model"), ("float32", "float32")
            )[0],
            (P(), P()),
            P("data"),
        )
        assert "ppermute" not in str(jax.make_jaxpr(run)(x, dy))


@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2)])
def test_gradients_of_the_model_are_those_of_one_device(monkeypatch, in_steps, sizes):
    monkeypatch.setattr(
        "helpers.numerics_of",
        lambda config: dataclasses.replace(
            Numerics.of(config.model, config.precision, "cpu"), ring=True
        ),
    )
    config = model_config(kv_heads=1)
    params, batch = host_params(config), host_batch(config)
    expected_loss, expected = loss_and_gradients(config, mesh_of(), params, batch)
    loss, gradients = loss_and_gradients(config, mesh_of(*sizes), params, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    errors = {name: error(g, flat(expected)[name]) for name, g in flat(gradients).items()}
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize("equation", ["BTD,DF->BTF", "BTF,FD->BTD"])
def test_a_product_of_the_backward_pass_waits_for_the_gradient_whose_sums_it_hides(
    in_steps, equation
):
    """The one with the own piece of the stream, or the last one of its gradient: see the barriers
    of the lowered program."""
    reads_stream = equation == "BTD,DF->BTF"
    places = ("data", "model") if reads_stream else ("model", "data")

    def device(x, shard, dy):
        def product(x, shard):
            static = equation, places, "float32"
            if reads_stream:
                return ring.multiply_gathered(static, ring.gathered_pieces(x), Stored(shard))
            return ring.RingSteps().multiply(static, x, Stored(shard)).scattered()

        return jax.vjp(product, x, shard)[1](dy)

    specs = P("data", None, "model"), P(*places), P("data", None, "model")
    shapes = (2, 3, 16), (16, 16), (2, 3, 16)
    with jax.set_mesh(mesh_of(data=2, model=4)):
        run = jax.jit(on_devices(device, specs, specs[:2]), in_shardings=specs)
        arguments = [
            jax.ShapeDtypeStruct(shape, "float32", sharding=spec)
            for shape, spec in zip(shapes, specs, strict=True)
        ]
        text = run.trace(*arguments).lower().as_text()
    barriers = re.findall("optimization_barrier (.*?) :", text)
    halves, pieces, sum_of_others = 2, 4, 1
    assert max(barrier.count(",") for barrier in barriers) == halves + (
        pieces if reads_stream else sum_of_others
    )
