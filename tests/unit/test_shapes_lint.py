"""Names agree with einsum strings in the package, and the check finds where they do not."""

from pathlib import Path

import pytest

from tools import check_shapes

ROOT = Path(__file__).resolve().parents[2]
ALPHABET = set("BTSDFNKGHVL")


def test_the_package_has_no_violations():
    assert check_shapes.check(ROOT) == []


@pytest.mark.parametrize("file", ["models/attention.py", "models/feed_forward.py"])
def test_the_einsums_of_the_package_are_checked(file, monkeypatch):
    """With an alphabet that lacks D, the check finds the matmuls of the blocks."""
    monkeypatch.setattr(check_shapes, "alphabet", lambda source: ALPHABET - {"D"})
    found = check_shapes.check(ROOT)
    assert any(file in line and ",D" in line and "no letter D" in line for line in found), found


GOOD = [
    's_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH)',
    's_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q, k_BSNH[0]) * H**-0.5',
    'y_BTD = einsum("BTF,FD->BTD", self.h_BTF.astype(t), params["wd_FD"]).astype(t)',
    'y_BTD = einsum("BTF,FD->BTD", h_BTF, w.wd_FD, out_sharding=spec("BTD"))',
    'x_BTD = x_BTD + einsum("BTF,FD->BTD", h_BTF, w.wd_FD)',
    'x_BTD += einsum("BTF,FD->BTD", h_BTF, w.wd_FD)',
    'm_B1TS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH)',
    'loss = jnp.einsum("BT,BT->", a_BT, b_BT)',
    '(h_BTF,) = remat.keep(remat.PROJECTION, einsum("BTD,DF->BTF", y_BTD, w.wup_DF))',
    'q_BTNH, *others = einsum("BTD,DNH->BTNH", y_BTD, w.wq_DNH), *more',
    'return einsum("BTF,FD->BTD", h_BTF, w.wd_FD), {}',
    'MAX_XY = 3\nsplit = text.split("->")',
]

BAD = {
    "wrong order of letters": (
        'jnp.einsum("BTD,DF->BTF", x_BDT, w_DF)', "x_BDT does not have the letters BTD"),
    "swapped operands": (
        'jnp.einsum("BTD,DF->BTF", w_DF, x_BTD)', "w_DF does not have the letters BTD"),
    "wrong result": (
        'y_BTD = jnp.einsum("BTD,DF->BTF", x_BTD, w_DF)', "y_BTD does not have the letters BTF"),
    "result too short": ('y_BT = jnp.einsum("BTD,DF->BTF", x_BTD, w_DF)', "y_BT does not"),
    "scalar result": (
        'y_BT = jnp.einsum("BT,BT->", a_BT, b_BT)', "y_BT does not have the letters (none)"),
    "einsum of a weight": (
        'q_BTNH = einsum("BTD,DNH->BTNH", y_BTD, w.wq_DHN)', "wq_DHN does not"),
    "einsum of a weight, stream": ('einsum("BTD,DNH->BTNH", y_BTF, w.wq_DNH)', "y_BTF does not"),
    "einsum of a weight, result": (
        'k_BTNH = einsum("BTD,DKH->BTKH", y_BTD, w.wk_DKH)', "k_BTNH does not"),
    "attribute": ('jnp.einsum("BTD,DF->BTF", x_BTD, self.w_FD)', "w_FD does not"),
    "string subscript": ('jnp.einsum("BTD,DF->BTF", x_BTD, params["w_FD"])', "w_FD does not"),
    "cast": ('jnp.einsum("BTD,DF->BTF", x_BT.astype(t), w_DF)', "x_BT does not"),
    "a digit too many": ('jnp.einsum("BTD,DF->BTF", x_1BTD, w_DF)', "x_1BTD does not"),
    "target of a cast": ('y_BTD = jnp.einsum("BTD,DF->BTF", x, w).astype(t)', "y_BTD does not"),
    "target of a scaled result": (
        'y_BTD = 2 * jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD does not"),
    "annotated target": ('y_BTD: Array = jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD does not"),
    "attribute as target": ('self.y_BTD = jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD does not"),
    "target in a tuple": (
        'q_BTNH, y_BTD = f(x), einsum("BTD,DF->BTF", x, w)', "y_BTD does not"),
    "target of keep": (
        '(y_BTD,) = remat.keep(remat.PROJECTION, einsum("BTD,DF->BTF", x, w))', "y_BTD does not"),
    "second target of keep": (
        'x_BTD, y_BTD = keep(NAME, x_BTD, einsum("BTD,DF->BTF", x, w))', "y_BTD does not"),
    "sum": (
        'def f():\n    return x_BTD + einsum("BTD,DF->BTF", x, w)',
        "x_BTD does not have the letters BTF"),
    "increment": ('y_BTD += jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD does not"),
    "too few operands": ('jnp.einsum("BTD,DF->BTF", x_BTD)', "2 terms but 1 operands"),
    "too many operands": ('jnp.einsum("BTD,DF->BTF", x, w, w)', "2 terms but 3 operands"),
    "unknown letter": ('jnp.einsum("BTX,XF->BTF", x, w)', "no letter X in the alphabet"),
    "unknown letter in a name": ("z_BX = f(y)", "z_BX: no letter X in the alphabet"),
    "unknown letter in a parameter": ("def f(z_BX): pass", "z_BX: no letter X in the alphabet"),
    "string in a variable": ("jnp.einsum(letters, x, w)", "write the einsum string in the call"),
    "string elsewhere": (
        'kv = "BTD,DKH->BTKH"\nk_BTKH = einsum(kv, y_BTD, w.wk_DKH)',
        '"BTD,DKH->BTKH": write the einsum string in the call'),
    "lower case": ('jnp.einsum("btd,df->btf", x, w)', "write the einsum string in the call"),
    "other function": (
        'contract("BTD,DF->BTF", x_BTD, w_DF)', '"BTD,DF->BTF": write the einsum string in'),
    "string in a tuple": ('gate = ("BTD,DF->BTF", w.w_DF)', "write the einsum string in the call"),
}  # fmt: skip


@pytest.mark.parametrize("source", GOOD)
def test_agreement_is_silent(source):
    if source.startswith("return"):
        source = f"def f():\n    {source}"
    assert check_shapes.Source(source, ALPHABET).check() == []


@pytest.mark.parametrize("case", BAD)
def test_disagreement_is_reported(case):
    source, message = BAD[case]
    found = check_shapes.Source(source, ALPHABET).check()
    assert any(message in text for _, text in found), found


def test_the_line_is_reported():
    found = check_shapes.Source('a = 1\njnp.einsum("BTD,DF->BTF", x_BT, w)', ALPHABET).check()
    assert found == [(2, '"BTD,DF->BTF": x_BT does not have the letters BTD')]


def test_generic_files_may_pass_strings_on():
    assert check_shapes.Source("jnp.einsum(letters, x, w)", ALPHABET, generic=True).check() == []


def test_the_alphabet_is_read_from_the_source():
    assert check_shapes.alphabet('ALPHABET: dict[str, str] = {"B": "batch", "T": "time"}') == {
        "B",
        "T",
    }
    with pytest.raises(ValueError, match="ALPHABET"):
        check_shapes.alphabet("letters = {}")
