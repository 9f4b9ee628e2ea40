"""Checks that names agree with einsum strings, which spell the same letters twice:

    q_BTNH = einsum("BTD,DNH->BTNH", y_BTD, w.wq_DNH)

    python tools/check_shapes.py        prints one line for each violation; exits with 1 if any

`jnp.einsum` and the `einsum` of `nn/einsum.py` are checked alike. The string must be written in the
call. An operand is compared if it is a name, an attribute or a string subscript
(`params["wq_DNH"]`) that ends in `_` and dimension letters, also before `.astype(...)`. A digit in
a name is a dimension of that size and matches any letter.

The letters after the arrow are compared with the target of an assignment, with the operand that the
result is added to or multiplied by (NumPy's silent rank promotion is off), and with the target of
`remat.keep(name, result)`, which returns its arrays.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

EINSUM = re.compile(r"[A-Z]+(,[A-Z]+)*->[A-Z]*")
SUFFIX = re.compile(r"[a-z0-9]_([A-Z0-9]*[A-Z][A-Z0-9]*)$")
# The einsum strings in these files are variables.
GENERIC = (
    "paxlike/nn/einsum.py", "paxlike/nn/ring.py", "paxlike/nn/gradient_ring.py",
    "paxlike/nn/adapted.py", "paxlike/nn/rows.py",
)  # fmt: skip


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
    """The keys of the dict ALPHABET. Raises ValueError if there is none."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "ALPHABET" for target in targets):
            return set(ast.literal_eval(node.value))
    raise ValueError("paxlike/parallel/axes.py does not define a dict ALPHABET.")


class Source:
    """One file. `check()` returns (line, what is wrong)."""

    def __init__(self, text: str, letters: set[str], generic: bool = False):
        self.tree, self.letters, self.generic = ast.parse(text), letters, generic

    def check(self) -> list[tuple[int, str]]:
        found, partners = set(), self._partners()
        calls = [node for node in ast.walk(self.tree) if _called(node) == "einsum"]
        in_calls = {id(call.args[0]) for call in calls if call.args}
        for node in ast.walk(self.tree):
            messages = list(self._name_letters(node))
            if _string(node) and id(node) not in in_calls:
                messages.append(f'"{_string(node)}": write the einsum string in the call of einsum')
            found |= {(node.lineno, message) for message in messages}
        for call in [] if self.generic else calls:
            found |= {(call.lineno, m) for m in self._einsum(call, partners.get(call, []))}
        return sorted(found)

    def _partners(self) -> dict[ast.Call, list[ast.expr]]:
        """Call -> the expressions that must have the letters of its result."""
        partners: dict[ast.Call, list[ast.expr]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value:
                targets = getattr(node, "targets", None) or [node.target]
                pairs = [pair for target in targets for pair in _unpacked(node.value, target)]
            elif isinstance(node, ast.BinOp) and not isinstance(node.op, ast.MatMult):
                pairs = [(node.left, node.right), (node.right, node.left)]
            else:
                continue
            for value, partner in pairs:
                for call in _calls(value):
                    partners.setdefault(call, []).append(partner)
        return partners

    def _einsum(self, call: ast.Call, partners: list[ast.expr]) -> Iterator[str]:
        einsum = _string(call.args[0]) if call.args else None
        if einsum is None:
            yield f"write the einsum string in the call {ast.unparse(call)[:60]}"
            return
        terms, result = einsum.split("->")[0].split(","), einsum.split("->")[1]
        operands = call.args[1:]
        if unknown := sorted(set(einsum) - self.letters - set(",->")):
            yield f'"{einsum}": no letter {", ".join(unknown)} in the alphabet'
        if len(operands) != len(terms):
            yield f'"{einsum}": {len(terms)} terms but {len(operands)} operands'
            return
        for term, operand in zip(terms, operands, strict=True):
            yield from _compare(operand, term, f'"{einsum}"')
        for partner in partners:
            yield from _compare(partner, result, "result")

    def _name_letters(self, node: ast.AST) -> Iterator[str]:
        """Assigned names and parameters that end in two or more capitals outside the alphabet."""
        stored = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store)
        name = node.arg if isinstance(node, ast.arg) else _name(node) if stored else ""
        suffix = re.search(r"[a-z0-9]_([A-Z]{2,})$", name)
        if suffix and (unknown := sorted(set(suffix[1]) - self.letters)):
            yield f"{name}: no letter {', '.join(unknown)} in the alphabet"


def _string(node: ast.AST) -> str | None:
    """The einsum string that a node is, if it is one."""
    text = node.value if isinstance(node, ast.Constant) else None
    return text if isinstance(text, str) and EINSUM.fullmatch(text) else None


def _called(node: ast.AST) -> str:
    """The last name of the function that a call calls: `jnp.einsum(...)` -> `einsum`."""
    if not isinstance(node, ast.Call):
        return ""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _unpacked(value: ast.expr, target: ast.expr) -> list[tuple[ast.expr, ast.expr]]:
    """(value, target) of an assignment, element by element if both are tuples."""
    parts = value.elts if isinstance(value, ast.Tuple) else None
    if _called(value) == "keep":
        parts = value.args[1:]
    if parts is None or not isinstance(target, ast.Tuple) or len(parts) != len(target.elts):
        return [(value, target)]
    return list(zip(parts, target.elts, strict=True))


def _calls(value: ast.expr) -> list[ast.Call]:
    """The calls whose result has an expression's shape: itself, before `.astype(...)`, or a part of
    a sum or product."""
    if isinstance(value, ast.BinOp) and not isinstance(value.op, ast.MatMult):
        return _calls(value.left) + _calls(value.right)
    if isinstance(value, ast.Call):
        return _calls(value.func.value) if _is_cast(value) else [value]
    return []


def _is_cast(node: ast.AST) -> bool:
    return _called(node) == "astype" and isinstance(node.func, ast.Attribute)


def _name(node: ast.AST) -> str:
    """The identifier of an expression that does not change its shape, or ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return node.slice.value if isinstance(node.slice.value, str) else ""
    return _name(node.func.value) if _is_cast(node) else ""


def _compare(node: ast.expr, letters: str, where: str) -> Iterator[str]:
    """A message if the node's name has a suffix with other letters."""
    suffix = SUFFIX.search(_name(node))
    if suffix is None:
        return
    alike = [a == b or a.isdigit() for a, b in zip(suffix[1], letters, strict=False)]
    if len(suffix[1]) != len(letters) or not all(alike):
        yield f"{where}: {_name(node)} does not have the letters {letters or '(none)'}"


if __name__ == "__main__":
    violations = check(Path(__file__).resolve().parents[1])
    print("\n".join(violations))
    sys.exit(bool(violations))
