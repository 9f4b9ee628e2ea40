"""Training objectives: compute a loss from the decoder's hidden states and a batch.

An objective returns this device's losses: sums over its own predicted tokens, equal on all devices
along `model`. `training/step.py` differentiates and reports them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from paxlike.config import Config
from paxlike.models.decoder import Decoder
from paxlike.nn.collectives import Leaf
from paxlike.training.loss import Head, Losses, sum_losses

Array = jax.Array


class DeviceBatch(NamedTuple):
    """A batch on the mesh, int32 [A, B, T]: A gradient-accumulation steps of B sequences.

    Or the PartitionSpecs or shapes of these arrays.
    """

    tokens_ABT: Leaf
    targets_ABT: Leaf
    segments_ABT: Leaf | None


Objective = Callable[[Config, Decoder, Array, DeviceBatch], Losses]
"""(config, decoder, hidden states x_BTD, one accumulation step [B, T]) -> this device's losses."""


def next_token(config: Config, decoder: Decoder, x_BTD: Array, part: DeviceBatch) -> Losses:
    """Returns the cross-entropy of the next token and PaLM's z-loss."""
    weight, gradients = decoder.head(), decoder.numerics.gradients
    head = Head(
        weight.letters,
        weight.places,
        config.model.logits_factor,
        config.model.vocab_size,
        config.train.z_loss,
        gradients,
        softcap=config.model.logit_softcap,
    )
    return sum_losses(x_BTD, weight.shard, part.targets_ABT, head, weight.zeros_VD)


OBJECTIVE: Objective = next_token
"""The objective that training minimizes."""
