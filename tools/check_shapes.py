"""Checks that names and einsum strings agree: in `q_BTNH = einsum("BTD,DNH->BTNH", x_BTD, w_DNH)` the letters are said twice.

    python tools/check_shapes.py        prints one line for each violation; exit code 1 if there is one

Three helpers take einsum strings (a trailing underscore, as of a local partial, makes no difference):
    einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH)                               a string, then an operand for each term
    project(x_BTD, "BTD,DNH->BTNH", wq_DNH, "BTD,DF->BTF", wi_DF)           one operand shared, then pairs; a tuple
    combine("BTNH,NHD->BTD", o_BTNH, wo_NHD, "BTF,FD->BTD", h_BTF, wd_FD)   triples; their sum
A string may be a name that is given to one string in the file, and `*self.pairs()` is read through to what that method
returns. Elsewhere a tuple with einsum strings is checked too: each string with the operands that follow it.

An operand is compared if it is a name, an attribute or a string subscript (`params["wq_DNH"]`) that ends in `_` and
dimension letters, also behind `[...]`, `.astype(...)` or `.value`; a digit in a name is a dimension of that size and stands
for any letter. The letters after the arrow are compared with the target of an assignment, and with what the result is
added to or multiplied by (numpy's silent rank promotion is off).
"""

import ast
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

EINSUM = re.compile(r"[A-Z]+(,[A-Z]+)*->[A-Z]*")
SUFFIX = re.compile(r"[a-z0-9]_([A-Z0-9]*[A-Z][A-Z0-9]*)$")
# Where the helpers themselves are written: their einsum strings are variables.
GENERIC = ("paxlike/nn/einsum.py",)
# Helper -> (operands shared by all strings, operands after each string; None: the rest).
HELPERS = {"einsum": (0, None), "project": (1, 1), "combine": (0, 2)}


def check(root: Path) -> list[str]:
    """Violations in `root`/paxlike, each as "file:line: what is wrong"."""
    letters = alphabet((root / "paxlike/parallel/axes.py").read_text(encoding="utf-8"))
    found = []
    for path in sorted(root.glob("paxlike/**/*.py")):
        name = path.relative_to(root).as_posix()
        source = Source(path.read_text(encoding="utf-8"), letters, generic=name in GENERIC)
        found += [f"{name}:{line}: {message}" for line, message in source.check()]
    return found


def alphabet(source: str) -> set[str]:
    """The keys of the dict ALPHABET."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "ALPHABET" for target in targets):
            return set(ast.literal_eval(node.value))
    raise ValueError("paxlike/parallel/axes.py defines no dict ALPHABET.")


class Source:
    """One file. `check()` gives (line, what is wrong)."""

    def __init__(self, text: str, letters: set[str], generic: bool = False):
        self.tree, self.letters, self.generic = ast.parse(text), letters, generic
        nodes = list(ast.walk(self.tree))
        named = [(n.targets[0].id, n.value.value) for n in nodes if _names_a_string(n)]
        self.strings = {name: text for name, text in named if [n for n, _ in named].count(name) == 1}
        self.returned = {}
        for function in nodes:
            if isinstance(function, ast.FunctionDef):
                returns = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
                if len(returns) == 1 and isinstance(returns[0], ast.Tuple):
                    self.returned[function.name] = returns[0].elts

    def check(self) -> list[tuple[int, str]]:
        found, partners = set(), self._partners()
        for node in ast.walk(self.tree):
            messages = list(self._name_letters(node))
            if isinstance(node, ast.Call):
                messages += self._call(node, partners.get(node, []))
            elif isinstance(node, ast.Tuple):
                messages += self._tuple(node)
            found |= {(node.lineno, message) for message in messages}
        return sorted(found)

    def _partners(self) -> dict[ast.Call, list[ast.expr]]:
        """Call -> the expressions that must have the letters of its result."""
        partners: dict[ast.Call, list[ast.expr]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
                pairs = [(node.value, target) for target in getattr(node, "targets", None) or [node.target]]
            elif isinstance(node, ast.BinOp) and not isinstance(node.op, ast.MatMult):
                pairs = [(node.left, node.right), (node.right, node.left)]
            else:
                continue
            for value, partner in pairs:
                for call in _calls(value):
                    partners.setdefault(call, []).append(partner)
        return partners

    def _call(self, call: ast.Call, partners: list[ast.expr]) -> Iterator[str]:
        helper = (call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")).rstrip("_")
        if helper not in HELPERS:
            if any(self._string(arg) for arg in call.args):
                yield f"{helper} takes an einsum string and is no helper known here: add it to tools/check_shapes.py"
            return
        if self.generic:
            return
        shared, after = HELPERS[helper]
        args = self._expanded(call.args[shared:])
        after = len(args) - 1 if after is None else after
        outs: list[str | None] = []
        while args:
            if isinstance(args[0], ast.Starred):
                args, outs = args[1:], [*outs, None]
                continue
            einsum = self._string(args[0])
            operands, args = [*call.args[:shared], *args[1 : 1 + after]], args[1 + after :]
            if einsum is None:
                yield f"{helper}: write the einsum string out where {ast.unparse(call)[:60]}... has none"
                return
            yield from self._operands(einsum, operands)
            outs.append(einsum.split("->")[1])
        if helper != "project":
            for partner in partners:
                yield from (m for out in outs for m in _compare(partner, out, "result"))
        for partner in partners:
            if helper == "project" and isinstance(partner, ast.Tuple | ast.List):
                yield from _unpacked(partner.elts, outs)

    def _operands(self, einsum: str, operands: list[ast.expr]) -> Iterator[str]:
        terms = einsum.split("->")[0].split(",")
        if unknown := sorted(set(einsum) - self.letters - set(",->")):
            yield f'"{einsum}": no letter {", ".join(unknown)} in the alphabet'
        if len(operands) != len(terms):
            yield f'"{einsum}": {len(terms)} terms but {len(operands)} operands'
            return
        for term, operand in zip(terms, operands, strict=True):
            yield from _compare(operand, term, f'"{einsum}"')

    def _tuple(self, node: ast.Tuple) -> Iterator[str]:
        """Pairs or triples on their way to a helper: `("BTD,DF->BTF", self.wi_DF)`."""
        starts = [i for i, element in enumerate(node.elts) if self._string(element)]
        for start, end in itertools.pairwise([*starts, len(node.elts)]):
            einsum, operands = self._string(node.elts[start]), node.elts[start + 1 : end]
            # Of a pair only the weight stands here: the other operand is shared.
            terms = einsum.split("->")[0].split(",")[-len(operands) :] if operands else []
            for term, operand in zip(terms, operands, strict=False):
                yield from _compare(operand, term, f'"{einsum}"')

    def _expanded(self, args: list[ast.expr]) -> list[ast.expr]:
        """`*self.pairs()` replaced by the tuple that this file's only `return` of `pairs` gives."""
        out = []
        for arg in args:
            call = arg.value if isinstance(arg, ast.Starred) else None
            name = call.func.attr if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None
            out += self._expanded(self.returned[name]) if name in self.returned else [arg]
        return out

    def _string(self, node: ast.expr) -> str | None:
        """The einsum string that an expression is, if it is one."""
        text = self.strings.get(node.id) if isinstance(node, ast.Name) else getattr(node, "value", None)
        return text if isinstance(text, str) and EINSUM.fullmatch(text) else None

    def _name_letters(self, node: ast.AST) -> Iterator[str]:
        """Assigned names and parameters that end in two or more capitals, not all of them in the alphabet."""
        stored = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store)
        name = node.arg if isinstance(node, ast.arg) else _name(node) if stored else ""
        suffix = re.search(r"[a-z0-9]_([A-Z]{2,})$", name)
        if suffix and (unknown := sorted(set(suffix[1]) - self.letters)):
            yield f"{name}: no letter {', '.join(unknown)} in the alphabet"


def _names_a_string(node: ast.AST) -> bool:
    """`kv = "BTD,DKH->BTKH"`"""
    if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
        return False
    return isinstance(node.value, ast.Constant) and EINSUM.fullmatch(str(node.value.value)) is not None


def _calls(value: ast.expr) -> list[ast.Call]:
    """The calls whose result has the shape of an expression: itself, behind `.astype(...)`, or a part of a sum or product."""
    if isinstance(value, ast.BinOp) and not isinstance(value.op, ast.MatMult):
        return _calls(value.left) + _calls(value.right)
    if isinstance(value, ast.Call):
        if isinstance(value.func, ast.Attribute) and value.func.attr == "astype":
            return _calls(value.func.value)
        return [value]
    return []


def _name(node: ast.AST) -> str:
    """The identifier that an expression is read from without changing its shape, or "" if there is none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return _name(node.value) if node.attr == "value" else node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        if isinstance(node.slice.value, str):
            return node.slice.value
        return _name(node.value) if node.slice.value is ... else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "astype":
        return _name(node.func.value)
    return ""


def _compare(node: ast.expr, letters: str | None, where: str) -> Iterator[str]:
    """A message where the node's name has a suffix that does not spell these letters (None: not known)."""
    suffix = SUFFIX.search(_name(node))
    if suffix is None or letters is None:
        return
    alike = [a == b or a.isdigit() for a, b in zip(suffix[1], letters, strict=False)]
    if len(suffix[1]) != len(letters) or not all(alike):
        yield f"{where}: {_name(node)} stands where the letters are {letters or '(none)'}"


def _unpacked(targets: list[ast.expr], outs: list[str | None]) -> Iterator[str]:
    """A tuple of names against results; from a star on, on either side, nothing is known."""
    if (
        None not in outs
        and not any(isinstance(target, ast.Starred) for target in targets)
        and len(targets) != len(outs)
    ):
        yield f"project: {len(outs)} results for {len(targets)} names"
        return
    for target, out in zip(targets, outs, strict=False):
        if out is None or isinstance(target, ast.Starred):
            return
        yield from _compare(target, out, "result")


if __name__ == "__main__":
    violations = check(Path(__file__).resolve().parents[1])
    print("\n".join(violations))
    sys.exit(bool(violations))
