"""The chunked loss against the plain formula in float64, and its memory use."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import mesh_of, put, sharded_losses
from jax.sharding import NamedSharding

from paxlike.nn.collectives import on_devices, share_over_model
from paxlike.parallel.mesh import spec, weight_spec
from paxlike.training.loss import CHUNK_ELEMENTS, Head, sum_losses

B, T, D, ROWS, VOCABULARY = 4, 6, 16, 48, 41
SCALE, Z = 0.25, 0.02


class Sums(NamedTuple):
    loss: jax.Array
    cross_entropy: jax.Array
    z_loss: jax.Array
    correct: jax.Array


def exact(x_BTD, head_VD, targets_BT, z=Z, vocab_size=VOCABULARY):
    """Returns (losses, dx, dhead) in float64: the formula over all logits, and its derivative."""
    x, weight, targets = (
        x_BTD.astype(np.float64).reshape(-1, D),
        head_VD.astype(np.float64),
        targets_BT.ravel(),
    )
    logits = (x @ weight.T * SCALE)[:, :vocab_size]
    log_z = np.log(np.exp(logits).sum(-1))
    tokens = np.flatnonzero(targets >= 0)
    target_logits = logits[tokens, targets[tokens]]
    cross_entropy = (log_z[tokens] - target_logits).sum()
    z_loss = z * (log_z[tokens] ** 2).sum()
    correct = (target_logits == logits[tokens].max(-1)).sum()
    dlogits = np.exp(logits - log_z[:, None]) * (1 + 2 * z * log_z)[:, None]
    dlogits[tokens, targets[tokens]] -= 1
    dlogits[targets < 0] = 0
    dlogits = np.pad(dlogits, ((0, 0), (0, len(weight) - vocab_size))) * SCALE
    losses = cross_entropy + z_loss, cross_entropy, z_loss, correct
    return losses, (dlogits @ weight).reshape(x_BTD.shape), dlogits.T @ x


def draw(dtype="float32", shape=(B, T)):
    random = np.random.default_rng(0)
    x = random.normal(size=(*shape, D)).astype(jnp.dtype(dtype))
    weight = random.normal(size=(ROWS, D)).astype(np.float32)
    # Large padding rows: every prediction would be one of them if they were not masked.
    weight[VOCABULARY:] *= 30
    targets = random.integers(0, VOCABULARY, shape).astype(np.int32)
    best = (x.astype(np.float64) @ weight[:VOCABULARY].T).argmax(-1)
    targets = np.where(random.random(shape) < 0.4, best, targets).astype(np.int32)
    if targets.size > 1:
        targets[:, ::3] = -1
    return x, weight, targets


def computed(
    x,
    weight_VD,
    targets,
    *,
    letters="VD",
    chunk_tokens=1000,
    sizes=(1, 1, 1),
    z=Z,
    factor=1.0,
    vocab_size=VOCABULARY,
):
    """Returns (losses, dx, dhead [V, D]) of factor * loss; chunk_tokens: per chunk and device."""
    chunk_elements = chunk_tokens * (ROWS // sizes[-1])
    head = Head(letters, (), SCALE, vocab_size, z, "float32", chunk_elements)
    weight = weight_VD if letters == "VD" else weight_VD.T
    with jax.set_mesh(mesh_of(*sizes)):
        x, targets = put("BTD", x), put("BT", targets)
        places = NamedSharding(jax.sharding.get_mesh(), weight_spec(letters, weight.shape))
        weight = jax.device_put(weight, places)

        @jax.jit
        def both(x, weight, targets):
            def scaled(x, weight):
                losses = sharded_losses(x, weight, targets, head)
                return losses.loss * factor, losses

            (_, losses), gradients = jax.value_and_grad(scaled, (0, 1), has_aux=True)(x, weight)
            assert [g.sharding.spec for g in map(jax.typeof, gradients)] == [
                jax.typeof(a).sharding.spec for a in (x, weight)
            ]
            # Evaluation, which takes no gradient, returns the same values.
            return losses, sharded_losses(x, weight, targets, head), gradients

        losses, alone, (dx, dweight) = both(x, weight, targets)
    losses, alone = Sums(*losses[:4]), alone[:4]  # without the statistics of routers
    np.testing.assert_allclose(alone, losses, rtol=1e-6)
    return losses, dx, np.asarray(dweight).T if letters == "DV" else dweight


def assert_close(found, wanted, tolerance):
    np.testing.assert_allclose(found[0], wanted[0], rtol=tolerance)
    assert_gradients_close(found[1:], wanted[1:], tolerance)


def assert_gradients_close(found, wanted, tolerance):
    for name, a, b in zip(("dx", "dhead"), found, wanted, strict=True):
        error = np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
        assert error < tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize("letters", ["VD", "DV"])
@pytest.mark.parametrize(
    "chunk_tokens", [1000, 8, 7, 1], ids=["whole", "dividing", "not dividing", "one by one"]
)
def test_losses_and_gradients_match_the_formula(letters, chunk_tokens):
    """24 tokens, in chunks of 24, 8, 7 and 1."""
    given = draw()
    assert 0 < exact(*given)[0][3] < (given[2] >= 0).sum()
    assert_close(computed(*given, letters=letters, chunk_tokens=chunk_tokens), exact(*given), 3e-6)


@pytest.mark.parametrize(("letters", "sizes"), [("VD", (1, 2, 4)), ("DV", (2, 2, 2))])
def test_a_vocabulary_sharded_over_the_mesh(letters, sizes):
    """The last of 4 shards of 12 rows has 7 padding rows; chunks of 5 do not divide 12 tokens."""
    given = draw()
    assert_close(
        computed(*given, letters=letters, sizes=sizes, chunk_tokens=5), exact(*given), 3e-6
    )


def test_a_shard_with_only_padding():
    """A vocabulary of 31 on 4 shards of 12 rows: the last shard has only padding rows."""
    x, weight, targets = draw()
    given = x, weight, np.minimum(targets, 30)
    assert_close(
        computed(*given, sizes=(1, 1, 4), vocab_size=31), exact(*given, vocab_size=31), 3e-6
    )


def test_padding_rows_are_never_predicted_and_get_no_gradient():
    given = draw()
    _, _, dweight = computed(*given)
    assert np.abs(dweight[:VOCABULARY]).max(-1).min() > 0
    np.testing.assert_array_equal(dweight[VOCABULARY:], 0)


def test_no_predicted_tokens():
    """All results are zero, without a division by zero."""
    x, weight, targets = draw()
    losses, dx, dweight = computed(x, weight, np.full_like(targets, -1), chunk_tokens=7)
    for value in (*losses, dx, dweight):
        np.testing.assert_array_equal(value, 0)


def test_tokens_that_are_not_predicted_get_no_gradient():
    given = draw()
    _, dx, _ = computed(*given, chunk_tokens=7)
    untouched = np.abs(dx).max(-1) == 0
    np.testing.assert_array_equal(untouched, given[2] == -1)


def test_one_token():
    given = draw(shape=(1, 1))
    assert_close(computed(*given), exact(*given), 3e-6)


def test_z_loss_is_its_weight_times_the_square_of_log_z():
    given = draw()
    (loss, cross_entropy, z_loss, _), *_ = computed(*given, z=0.0)
    assert z_loss == 0 and loss == cross_entropy
    (_, same, weighed, _), *_ = computed(*given)
    np.testing.assert_allclose((same, weighed), exact(*given)[0][1:3], rtol=3e-6)


def test_logits_that_overflow_exp():
    """Logits of +-1,000: log Z is their maximum, not infinite."""
    x, weight, targets = draw()
    losses, dx, _ = computed(x * 1000, weight, targets)
    logits = (x.astype(np.float64) * 1000 @ weight[:VOCABULARY].T * SCALE).reshape(-1, VOCABULARY)
    tokens = np.flatnonzero(targets.ravel() >= 0)
    assert np.abs(logits).max() > 1000
    wanted = np.logaddexp.reduce(logits, axis=-1)[tokens] - logits[tokens, targets.ravel()[tokens]]
    np.testing.assert_allclose(losses.cross_entropy, wanted.sum(), rtol=1e-5)
    assert np.isfinite(dx).all()


def test_the_cotangent_scales_the_gradients():
    given = draw()
    losses, dx, dweight = exact(*given)
    assert_close(computed(*given, factor=3.0, chunk_tokens=7), (losses, 3 * dx, 3 * dweight), 3e-6)


def test_bfloat16_compute():
    """Losses are float32 sums computed with rounded weights. Gradients are rounded three times."""
    x, weight, targets = draw("bfloat16")
    losses, dx, dweight = computed(x, weight, targets, chunk_tokens=7)
    assert (
        dx.dtype == jnp.bfloat16 and dweight.dtype == np.float32 and losses.loss.dtype == np.float32
    )
    rounded = weight.astype(jnp.bfloat16).astype(np.float32)
    wanted = exact(x, rounded, targets)
    np.testing.assert_allclose(losses, wanted[0], rtol=1e-5)
    assert_close((losses, dx, dweight), exact(x, weight, targets), 3 * 2**-8)


def test_the_cotangent_is_not_rounded_to_bfloat16():
    """bfloat16 rounds 1/1000 by 0.11 %, which would change every gradient of a mean over tokens."""
    given = draw("bfloat16")
    once, scaled = (
        np.asarray(computed(*given, factor=factor)[1], np.float64) for factor in (1.0, 0.001)
    )
    assert (scaled[once != 0] / once[once != 0]).mean() == pytest.approx(0.001, rel=4e-4)


@pytest.mark.parametrize("sizes", [(1, 1, 4), (2, 2, 2)], ids=["1x1x4", "2x2x2"])
def test_gradients_inside_the_map(sizes):
    """Gradients as the train step computes them: each `model` shard's copy of the loss counts for
    its share. The head's gradient is summed over `data`, but not over `pod`."""
    given = draw()
    head = Head("VD", (), SCALE, VOCABULARY, Z, "float32", 5 * ROWS)
    with jax.set_mesh(mesh_of(*sizes)):
        x_spec, w_spec, targets_spec = (
            spec("BTD", (B, T, D)), weight_spec("VD", (ROWS, D)), spec("BT", (B, T)),
        )  # fmt: skip

        def device(x, weight, targets):
            def loss(x, weight):
                own = sum_losses(x, weight, targets, head._replace(places=tuple(w_spec)))
                return share_over_model(own.loss)

            dx, dweight = jax.grad(loss, argnums=(0, 1))(x, weight)
            return dx, dweight[None]

        by_pod = jax.P("pod", *w_spec)
        run = on_devices(device, (x_spec, w_spec, targets_spec), (x_spec, by_pod))
        mesh = jax.sharding.get_mesh()
        shardings = [NamedSharding(mesh, spec) for spec in (x_spec, w_spec, targets_spec)]
        dx, dweight = jax.device_get(jax.jit(run)(*jax.device_put(given, tuple(shardings))))
    assert_gradients_close((dx, dweight.sum(0)), exact(*given)[1:], 3e-6)


# ---- memory --------------------------------------------------------------------------------------

WORDS, TOKENS, WIDTH = 256_000, 4096, 64
WHOLE_LOGITS = TOKENS * WORDS * 4


def plain(x_BTD, weight_VD, targets_BT):
    logits = jnp.einsum("BTD,VD->BTV", x_BTD, weight_VD)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return (log_z - jnp.take_along_axis(logits, targets_BT[..., None], axis=-1)[..., 0]).sum()


def temporary_bytes(loss, with_gradients, place):
    """Returns the bytes of the compiled program's temporaries. place(dims, shape): a sharding."""
    shapes = {
        "BTD": ((1, TOKENS, WIDTH), np.float32),
        "VD": ((WORDS, WIDTH), np.float32),
        "BT": ((1, TOKENS), np.int32),
    }
    given = [
        jax.ShapeDtypeStruct(*shape, sharding=place(dims, shape[0]))
        for dims, shape in shapes.items()
    ]
    function = jax.value_and_grad(loss, argnums=(0, 1)) if with_gradients else loss
    return jax.jit(function).lower(*given).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("with_gradients", [False, True], ids=["loss", "gradients"])
def test_only_one_chunk_of_logits_is_in_memory(with_gradients):
    """The plain formula allocates the float32 logits of 4,096 tokens and a vocabulary of 256,000:
    3.9 GiB. The default chunk is an eighth of that. Smaller chunks use less memory, down to that
    of the head's gradient."""
    mesh = mesh_of()

    def place(dims, shape):
        return NamedSharding(mesh, (weight_spec if dims == "VD" else spec)(dims, shape))

    def chunked(elements):
        head = Head("VD", (), 1.0, WORDS, Z, "float32", elements)
        with jax.set_mesh(mesh):
            return temporary_bytes(
                lambda *given: sharded_losses(*given, head).loss, with_gradients, place
            )

    assert temporary_bytes(plain, with_gradients, lambda dims, shape: None) >= WHOLE_LOGITS
    default, small = chunked(CHUNK_ELEMENTS), chunked(CHUNK_ELEMENTS // 16)
    gradient = WORDS * WIDTH * 4 * with_gradients
    assert default < WHOLE_LOGITS / 2
    assert small < 4 * (CHUNK_ELEMENTS // 16 * 4) + 2 * gradient, (default, small)
