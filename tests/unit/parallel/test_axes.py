"""Dimension letters at the end of names."""

import pytest

from paxlike.config import ExpertsConfig, ModelConfig
from paxlike.parallel.axes import ALPHABET, as_letters, letters_of, logical_axes, sizes


@pytest.mark.parametrize(
    ("name", "letters"),
    [
        ("blocks/wq_DNH", "DNH"),
        ("embedding_VD", "VD"),
        ("blocks/feed_forward_scale_D", "D"),
        ("x_BTD", "BTD"),
    ],
)
def test_letters_of(name, letters):
    assert letters_of(name) == letters


@pytest.mark.parametrize("name", ["bias", "wq_", "wq_DYH", "wq_dnh", "DNH", "wq_DNH2", ""])
def test_a_name_without_letters(name):
    with pytest.raises(ValueError, match=f"the name {name!r} must end in '_' and the letters"):
        letters_of(name)


EXPERTS = {
    "block": "serial_experts",
    "experts": ExpertsConfig(count=5, top_k=2, d_ff=30, shared=2),
}


def test_sizes_are_of_the_alphabet():
    model = ModelConfig(3, 40, 6, 2, 10, 70, 100, 64, learned_positions=32, **EXPERTS)
    expected = {
        "L": 3,
        "D": 40,
        "N": 6,
        "K": 2,
        "G": 3,
        "H": 10,
        "F": 70,
        "V": 128,
        "P": 32,
        "W": 0,
        "E": 5,
        "J": 2,
        "M": 30,
        "U": 60,
        "X": 64,
    }
    assert sizes(model) == expected
    assert set(sizes(model)) | set("ABTSRCQIO") == set(ALPHABET)


def test_t5x_names_of_dimensions():
    assert logical_axes("LDNH") == ("layers", "embed", "heads", "kv")
    assert (
        as_letters(("batch", "length", "embed")) == "BTD"
        and as_letters(("embed", "heads", "kv")) == "DNH"
    )
    assert as_letters("DKH") == "DKH"
    with pytest.raises(
        ValueError, match=r"the logical axes \['mpl'\] have no letter; use batch, embed"
    ):
        as_letters(("embed", "mpl"))
