"""The declaration of the feed-forward branch; `models/feed_forward.py` is its forward pass."""

from paxlike.architecture.branch import Activation, ActivationSizes, Product, WeightSpec
from paxlike.architecture.remat_policies import PROJECTION, STREAM
from paxlike.config import ModelConfig


class FeedForward:
    """A gated linear unit (three matrices) or two matrices around an activation."""

    name = "feed_forward"

    def weights(self, model: ModelConfig) -> tuple[WeightSpec, ...]:
        gate = WeightSpec("wgate_DF", "feed-forward", feeds_activation=True)
        up = WeightSpec("wup_DF", "feed-forward", feeds_activation=not model.gated)
        kernels = (*((gate,) if model.gated else ()), up, WeightSpec("wdown_FD", "feed-forward"))
        names = ("bgate_F", "bup_F", "bdown_D")[0 if model.gated else 1 :]
        biases = (WeightSpec(name, "biases", "bias") for name in names)
        return (*kernels, *(biases if model.feed_forward_bias else ()))

    def products(self, model: ModelConfig, sequence_length: int) -> tuple[Product, ...]:
        D, F, inputs = model.d_model, model.d_ff, 2 if model.gated else 1
        return (
            Product(
                "feed-forward in",
                "feed-forward",
                f"{2 * inputs}LDF",
                2 * inputs * D * F,
                PROJECTION,
            ),
            Product("feed-forward out", "feed-forward", "2LFD", 2 * F * D, STREAM, needed=False),
        )

    def activations(self, model: ModelConfig, sizes: ActivationSizes) -> tuple[Activation, ...]:
        columns, b = model.d_ff // sizes.model_shards, sizes.bytes
        # What JAX keeps of an activation's steps, of which the compiler drops none.
        steps = {"relu": 1, "relu2": b + 1}.get(model.feed_forward, 4 * b)
        return (
            Activation("feed-forward in", b * (2 if model.gated else 1) * columns, PROJECTION),
            Activation("activation", (b if sizes.fused else steps) * columns, None),
        )

    def cache(self, model: ModelConfig) -> dict[str, str]:
        return {}
