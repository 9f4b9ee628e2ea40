"""Rows of one batch with different adapters have the tokens that each has alone."""

import dataclasses

import jax
import numpy as np
import pytest
from helpers import host_params, mesh_of, model_config, numerics_of, place

from paxlike.adapt.merge import assembled
from paxlike.adapt.several import Adapter, check_mixed, with_adapters
from paxlike.config import AdaptConfig, ExpertsConfig, QuantConfig, UserError
from paxlike.infer.generate import Generator
from paxlike.infer.score import Scorer
from paxlike.infer.slots import Settings, Slots
from paxlike.training.state import abstract_trained

pytestmark = pytest.mark.slow

KINDS = {
    "attention": AdaptConfig("lora", rank=2, targets=("wq", "wk", "wv", "wo"), layers=(0, 1)),
    "everything": AdaptConfig("lora", rank=4, alpha=6.0, rank_stabilized=True),
    "short": AdaptConfig("prefix", prefix_length=3, prefix_hidden=0),
    "network": AdaptConfig("prefix", prefix_length=5, prefix_hidden=8),
}
PROMPTS = [[5, 6, 7], [80, 3], [9, 8, 7, 6, 5, 4, 3, 2, 1], [30], [5, 6, 7]]
NEW = 5


def placed_adapters(config) -> list[Adapter]:
    """With random weights, on the active mesh."""
    random, found = np.random.default_rng(2), []
    for name, adapt in KINDS.items():
        if name == "attention" and "expert_heads" in config.model.block:
            adapt = dataclasses.replace(adapt, targets=("wk", "wv"))
        own = dataclasses.replace(config, adapt=adapt)
        like = abstract_trained(own, numerics_of(own))

        def draw(leaf):
            value = (0.5 * random.standard_normal(leaf.shape)).astype(np.float32)
            return jax.device_put(value, leaf.sharding)

        found.append(Adapter(name, adapt, jax.tree.map(draw, like)))
    return found


SHAPES = {
    "grouped": ((1, 2, 4), {"kv_heads": 2, "block": "serial"}),
    "multi-query pattern": ((1, 1, 1), {"pattern": ("parallel_local", "parallel"),
                                        "sliding_window": 6, "layers": 4}),
    "expert heads": ((1, 1, 1), {"kv_heads": 2, "block": "serial_expert_heads",
                                 "experts": ExpertsConfig(3, 2, 24, 1)}),
    "quantized": ((1, 1, 1), {"quant": QuantConfig("bitnet_b158", "code", 8)}),
}  # fmt: skip


@pytest.mark.parametrize(("sizes", "shape"), SHAPES.values(), ids=SHAPES)
def test_mixed_rows_have_the_tokens_that_each_has_alone(sizes, shape):
    config = model_config(attention="blocked", **shape)
    numerics = numerics_of(config)
    with jax.set_mesh(mesh_of(*sizes)):
        base = host_params(config)
        # So that the next token depends on attention, not only on the last token.
        base["embedding_VD"] *= 0.05
        base = place(config, base)
        adapters = placed_adapters(config)
        alone = []
        for number, prompt in enumerate(PROMPTS):
            params = base
            if number:
                one = adapters[number - 1]
                own = dataclasses.replace(config, adapt=one.adapt)
                params = assembled(own, numerics, base, one.trained)
            (text,) = Generator(config.model, numerics, params, -1, 32).generate([prompt], NEW)
            alone.append(text.tolist())
        assert len({tuple(text) for text in alone}) == len(PROMPTS)
        mixed = with_adapters(config.model, numerics, base, adapters)
        slots = Slots(config.model, numerics, mixed, 6, 32)
        # Row n has adapter n; the last two rows are admitted after the others have begun.
        texts: dict[int, list[int]] = {row: [] for row in range(len(PROMPTS))}

        def take(drawn, rows):
            for row in rows:
                texts[row].append(int(drawn.token[row]))

        for rows in ((0, 1, 2), (3, 4)):
            settings = {row: Settings() for row in rows}
            prompts = {row: PROMPTS[row] for row in rows}
            take(slots.admit(prompts, settings, {row: row for row in rows}), rows)
            take(slots.step(), range(rows[-1] + 1))
        while min(map(len, texts.values())) < NEW:
            take(slots.step(), texts)
        assert [text[:NEW] for text in texts.values()] == alone

        # A freed row has another adapter next.
        slots.free(2)
        assert int(slots.admit({2: PROMPTS[4]}, {2: Settings()}, {2: 4}).token[2]) == alone[4][0]
        tokens = [*PROMPTS[2], *alone[2]]
        scorer = Scorer(config.model, numerics, slots.params, 32, 2)
        (score,), (plain,) = (scorer.score([tokens], [len(PROMPTS[2])], n) for n in (2, 0))
        assert score.greedy.all() and not plain.greedy.all()


def test_adapters_that_cannot_share_a_batch():
    trained_too = Adapter("mine", AdaptConfig("lora", train=("norms",)), {})
    with pytest.raises(UserError, match="the adapter mine has adapt.train norms"):
        check_mixed(trained_too)
    with pytest.raises(UserError, match="the adapter norms has adapt.train norms"):
        check_mixed(Adapter("norms", AdaptConfig(train=("norms",)), {}))
