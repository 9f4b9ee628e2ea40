"""`paxlike` as ever, but a batch has a NaN in it: the first one that $POISON names turns the
parameters' gradients into NaN.
"""

import os

import jax
import jax.numpy as jnp

from paxlike import cli
from paxlike.training import loop

POISONED = int(os.environ["POISON"])


def compile_poisoned(self, state, batch, real=loop._Loop.compile):
    step = real(self, state, batch)

    @jax.jit
    def spoiled(params, bad):
        return jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), params)

    def poisoned(state, batch):
        with jax.transfer_guard("allow"):
            bad = self.skipped.batch(int(state.step)) == POISONED
            return step(state._replace(params=spoiled(state.params, bad)), batch)

    return poisoned


loop._Loop.compile = compile_poisoned
cli.console()
