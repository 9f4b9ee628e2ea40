"""Names and einsum strings agree in the house, and the check notices where they would not."""

from pathlib import Path

import pytest

from tools import check_shapes

ROOT = Path(__file__).resolve().parents[2]
ALPHABET = set("BTSDFNKGHVL")


def test_the_names_of_the_house_tell_the_truth():
    assert check_shapes.check(ROOT) == []


def test_the_house_has_einsums_to_check(monkeypatch):
    """With an alphabet that lacks D, the check must find the blocks' matmuls."""
    monkeypatch.setattr(check_shapes, "alphabet", lambda source: ALPHABET - {"D"})
    assert any("models/palm.py" in line and "no letter D" in line for line in check_shapes.check(ROOT))


GOOD = [
    's_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH)',
    's_BNTS = jnp.einsum("BTNH,BSNH->BNTS", q, k_BSNH[0]) * H**-0.5',
    'y_BTD = jnp.einsum("BTF,FD->BTD", self.h_BTF.astype(t), params["wd_FD"][...]).astype(t)',
    'y_BTD = jnp.einsum("BTF,FD->BTD", h_BTF, w.wd_FD.value, out_sharding=spec("BTD"))',
    'q_BTNH, g_BTF = project(x_BTD, "BTD,DNH->BTNH", self.wq_DNH, "BTD,DF->BTF", self.wg_DF)',
    'q_BTNH, *wide = project_(x_BTD, "BTD,DNH->BTNH", self.wq_DNH[...], *pairs)',
    'both = project(x_BTD, "BTD,DNH->BTNH", self.wq_DNH, "BTD,DF->BTF", self.wg_DF)',
    'y_BTD = combine("BTNH,NHD->BTD", o_BTNH, self.wo_NHD, "BTF,FD->BTD", h_BTF, self.wd_FD)',
    'x_BTD = x_BTD + combine_("BTF,FD->BTD", h_BTF, self.wd_FD)',
    'x_BTD += combine("BTF,FD->BTD", h_BTF, self.wd_FD)',
    'm_B1TS = jnp.einsum("BNTH,BNSH->BNTS", q_BNTH, k_BNSH)',
    'loss = jnp.einsum("BT,BT->", a_BT, b_BT)',
    'kv = "BTD,DKH->BTKH"\nk_BTKH, v_BTKH = project(x_BTD, kv, self.wk_DKH, kv, self.wv_DKH)',
    'MAX_XY = 3\nsplit = text.split("->")',
]

BAD = {
    "wrong order of letters": ('jnp.einsum("BTD,DF->BTF", x_BDT, w_DF)', "x_BDT stands where the letters are BTD"),
    "swapped operands": ('jnp.einsum("BTD,DF->BTF", w_DF, x_BTD)', "w_DF stands where the letters are BTD"),
    "wrong output": ('y_BTD = jnp.einsum("BTD,DF->BTF", x_BTD, w_DF)', "y_BTD stands where the letters are BTF"),
    "one output too short": ('y_BT = jnp.einsum("BTD,DF->BTF", x_BTD, w_DF)', "y_BT stands where"),
    "scalar output": ('y_BT = jnp.einsum("BT,BT->", a_BT, b_BT)', "y_BT stands where the letters are (none)"),
    "attribute": ('jnp.einsum("BTD,DF->BTF", x_BTD, self.w_FD)', "w_FD stands"),
    "attribute, whole": ('jnp.einsum("BTD,DF->BTF", x_BTD, self.w_FD[...])', "w_FD stands"),
    "attribute, value": ('jnp.einsum("BTD,DF->BTF", x_BTD, self.w_FD.value)', "w_FD stands"),
    "string subscript": ('jnp.einsum("BTD,DF->BTF", x_BTD, params["w_FD"])', "w_FD stands"),
    "cast": ('jnp.einsum("BTD,DF->BTF", x_BT.astype(t), w_DF)', "x_BT stands"),
    "digit for a letter too many": ('jnp.einsum("BTD,DF->BTF", x_1BTD, w_DF)', "x_1BTD stands"),
    "target behind a cast": ('y_BTD = jnp.einsum("BTD,DF->BTF", x, w).astype(t)', "y_BTD stands"),
    "target of a scaled result": ('y_BTD = 2 * jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD stands"),
    "annotated target": ('y_BTD: Array = jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD stands"),
    "attribute target": ('self.y_BTD = jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD stands"),
    "sum": ('def f():\n    return x_BTD + combine("BTD,DF->BTF", x, w)', "x_BTD stands where the letters are BTF"),
    "increment": ('y_BTD += jnp.einsum("BTD,DF->BTF", x, w)', "y_BTD stands"),
    "too few operands": ('jnp.einsum("BTD,DF->BTF", x_BTD)', "2 terms but 1 operands"),
    "too many operands": ('jnp.einsum("BTD,DF->BTF", x, w, w)', "2 terms but 3 operands"),
    "unknown letter": ('jnp.einsum("BTX,XF->BTF", x, w)', "no letter X in the alphabet"),
    "unknown letter in a name": ("z_BX = f(y)", "z_BX: no letter X in the alphabet"),
    "unknown letter in a parameter": ("def f(z_BX): pass", "z_BX: no letter X in the alphabet"),
    "string not written out": ("jnp.einsum(letters, x, w)", "write the einsum string out"),
    "lower case": ('jnp.einsum("btd,df->btf", x, w)', "write the einsum string out"),
    "unknown helper": ('contract("BTD,DF->BTF", x_BTD, w_DF)', "contract takes an einsum string"),
    "project, shared": ('project(x_BT, "BTD,DF->BTF", w_DF)', "x_BT stands"),
    "project, weight": ('project(x, "BTD,DNH->BTNH", w_DNH, "BTD,DF->BTF", w_FD)', "w_FD stands"),
    "project, swapped targets": (
        'g_BTF, q_BTNH = project(x, "BTD,DNH->BTNH", a, "BTD,DF->BTF", b)', "g_BTF stands where the letters are BTNH"),
    "project, second target": ('q_BTNH, g_BTD = project(x, "BTD,DNH->BTNH", a, "BTD,DF->BTF", b)', "g_BTD stands"),
    "project, too few targets": ('a, b = project(x, "BTD,DF->BTF", w)', "1 results for 2 names"),
    "project, before a star": ('q_BTF, *rest = project_(x, "BTD,DNH->BTNH", w, *more)', "q_BTF stands"),
    "project, string by a name": ('kv = "BTD,DKH->BTKH"\nk_BTHK, v = project(x, kv, a, kv, b)', "k_BTHK stands"),
    "project, through a method": (
        'class A:\n    def pairs(self):\n        return "BTD,DNH->BTNH", a, "BTD,DF->BTF", b\n'
        "    def f(self):\n        q_BTNH, g_BTD = project(x, *self.pairs())",
        "g_BTD stands where the letters are BTF",
    ),
    "a pair in a tuple": ('gate = ("BTD,DF->BTF", self.w_FD[...]) if gated else ()', "w_FD stands"),
    "a triple in a tuple": ('out = ("BTNH,NHD->BTD", o_BNTH, w)', "o_BNTH stands"),
    "combine, first of the second": ('combine("BTNH,NHD->BTD", o, w, "BTF,FD->BTD", h_BFT, w)', "h_BFT stands"),
    "combine, second of the second": ('combine("BTNH,NHD->BTD", o, w, "BTF,FD->BTD", h, w_DF)', "w_DF stands"),
    "combine, target": ('y_BDT = combine("BTNH,NHD->BTD", o, w, "BTF,FD->BTD", h, w)', "y_BDT stands"),
    "combine, unlike results": ('y_BTD = combine("BTNH,NHD->BTD", o, w, "BTF,FD->BDT", h, w)', "letters are BDT"),
}  # fmt: skip


@pytest.mark.parametrize("source", GOOD)
def test_agreement_is_silent(source):
    assert check_shapes.Source(source, ALPHABET).check() == []


@pytest.mark.parametrize("case", BAD)
def test_disagreement_is_named(case):
    source, message = BAD[case]
    found = check_shapes.Source(source, ALPHABET).check()
    assert any(message in text for _, text in found), found


def test_the_line_is_named():
    found = check_shapes.Source('a = 1\njnp.einsum("BTD,DF->BTF", x_BT, w)', ALPHABET).check()
    assert found == [(2, '"BTD,DF->BTF": x_BT stands where the letters are BTD')]


def test_the_helpers_own_file_may_pass_strings_on():
    assert check_shapes.Source("jnp.einsum(letters, x, w)", ALPHABET, generic=True).check() == []


def test_the_alphabet_is_read_from_the_source():
    assert check_shapes.alphabet('ALPHABET: dict[str, str] = {"B": "batch", "T": "time"}') == {"B", "T"}
    with pytest.raises(ValueError, match="ALPHABET"):
        check_shapes.alphabet("letters = {}")
