"""Checks the floors of the house: imports go down only, each library has one door, nothing dangerous is called.

    python tools/check_layers.py        prints one line for each violation; exit code 1 if there is one

Read from the source with `ast`; nothing is imported.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

# From the ground up. A package may import its own floor and those below; "" is paxlike/__init__.py.
FLOORS = [
    ["", "config"],
    ["files"],
    ["parallel", "accounting"],
    ["quant", "data", "optim"],
    ["nn"],
    ["models"],
    ["train", "plan", "infer"],
    ["interop"],
    ["verbs"],
    ["cli", "__main__"],
]
FLOOR = {package: level for level, packages in enumerate(FLOORS) for package in packages}

# Library -> where it may be imported (folders end in /).
DOORS = {
    "flax": ("nn/", "models/", "interop/t5x.py", "interop/t5x_module.py"),
    "optax": ("optim/",),
    "orbax": ("train/checkpoint.py",),
    "grain": ("data/grain_source.py",),
    "tyro": ("verbs/",),
    "safetensors": ("train/packed.py",),
    "seqio": ("data/seqio_source.py",),
    "tensorflow": ("data/seqio_source.py",),
    "tensorstore": ("train/stored.py", "interop/t5x.py"),
    "lm_eval": ("interop/harness.py",),
    "starlette": ("interop/serve.py",),
    "uvicorn": ("interop/serve.py",),
    "tokenizers": ("interop/hf_tokenizer.py",),
    "jax.distributed": ("parallel/runtime.py",),
    "pathwaysutils": ("parallel/runtime.py",),
}
NO_JAX = ("config/", "accounting/")
# Flax NNX is used as modules and parameters only; transforms are plain jax.
NNX_FORBIDDEN = {"jit", "scan", "vmap", "grad", "value_and_grad", "remat", "Optimizer"}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
# Imported inside functions: heavy and optional anywhere; in verbs also what would slow the start of every verb.
LATE = {
    "libtpu",
    "torch",
    "transformers",
    "tensorflow",
    "seqio",
    "wandb",
    "lm_eval",
    "tensorboardX",
    "pathwaysutils",
    "tokenizers",
    "jax.experimental.pallas",
}
LATE_IN_VERBS = LATE | {"jax", "rich", "tyro", "paxlike"}


def check(root: Path) -> list[str]:
    """Violations in `root`/paxlike and `root`/launch, each as "file:line: what is wrong"."""
    found, imports = [], {}
    for path in sorted([*root.glob("paxlike/**/*.py"), *root.glob("launch/**/*.py")]):
        name = path.relative_to(root)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        breaks = [*dangers(tree), *doors(tree, name)]
        if name.parts[0] == "paxlike":
            breaks += floors(tree, name)
            imports[_module(name)] = {dotted for _, dotted, _ in imported(tree, name)}
        found += [f"{name}:{line}: {message}" for line, message in sorted(breaks)]
    return found + circles(imports) + jax_below(imports)


def imported(tree: ast.Module, name: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted name, inside a function?) of every import; `from a import b` gives a.b, which may be a module."""
    package = name.parent.as_posix().replace("/", ".").split(".")
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, dotted, id(node) in late) for dotted in names)


def floors(tree: ast.Module, name: Path) -> Iterator[tuple[int, str]]:
    """Imports of a floor above, and imports inside functions."""
    own = _package(_module(name))
    if own not in FLOOR:
        yield 1, f"the package {own!r} is on no floor: add it to FLOORS"
        return
    for line, dotted, late in imported(tree, name):
        top = dotted.split(".")[0]
        if top == "paxlike" and FLOOR.get(_package(dotted), 0) > FLOOR[own]:
            yield line, f"imports {dotted} from a floor above ({own} -> {_package(dotted)})"
        allowed = LATE_IN_VERBS if own in ("cli", "verbs") else LATE
        if late and not any(f"{dotted}.".startswith(f"{library}.") for library in allowed):
            yield line, f"imports {dotted} inside a function; move it to the head of the file"


def doors(tree: ast.Module, name: Path) -> Iterator[tuple[int, str]]:
    """Libraries used elsewhere than behind their door, and the parts of NNX that are not used at all."""
    inside = name.as_posix().removeprefix("paxlike/")
    watched = {"jax.distributed", *(f"{nnx}.{part}" for nnx in ("nnx", "flax.nnx") for part in NNX_FORBIDDEN)}
    attributes = ((node.lineno, ast.unparse(node)) for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    used = [(line, dotted) for line, dotted, _ in imported(tree, name)]
    for line, dotted in used + [(line, dotted) for line, dotted in attributes if dotted in watched]:
        for library, places in DOORS.items():
            if f"{dotted}.".startswith(f"{library}.") and not inside.startswith(places):
                yield line, f"uses {dotted}; the door of {library} is {' or '.join(places)}"
        if dotted in watched and dotted != "jax.distributed":
            yield line, f"uses {dotted}; take the jax.* transform"


def dangers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Code that runs what a file or a string says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            names = modules + [f"{module}.{alias.name}" for module in modules for alias in node.names]
            yield from ((node.lineno, f"imports {n}") for n in names if n in PICKLES or n in ("os.system", "os.popen"))
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "os.system", "os.popen"):
                yield node.lineno, f"calls {called}"
            for keyword in node.keywords:
                # Anything but a plain False: a name could hold True.
                if keyword.arg in ("shell", "allow_pickle") and ast.unparse(keyword.value) != "False":
                    yield node.lineno, f"calls {called} with {keyword.arg}={ast.unparse(keyword.value)}"


def circles(imports: dict[str, set[str]]) -> list[str]:
    """Circles among modules, and among packages (train -> infer -> train through different modules)."""
    modules = {module: {_known(name, imports) for name in names} - {None} for module, names in imports.items()}
    packages: dict[str, set[str]] = {}
    for module, targets in modules.items():
        own = _package(module)
        packages.setdefault(own, set()).update({_package(target) for target in targets} - {own})
    found = []
    for kind, graph in (("modules", modules), ("packages", packages)):
        for start in sorted(graph):
            if start in _reached(graph, graph[start]):
                found.append(f"{start}: is in a circle of {kind}: it imports itself through {sorted(graph[start])}")
    return found


def jax_below(imports: dict[str, set[str]]) -> list[str]:
    """config/ and accounting/ must start without JAX, so nothing that they import may import it either."""
    # Importing a.b.c runs a/__init__.py and a/b/__init__.py first.
    graph = {
        module: {_known(name, imports) for name in names} - {None} | _parents(module)
        for module, names in imports.items()
    }
    found = []
    for module in sorted(graph):
        if _inside(module).startswith(NO_JAX):
            for other in sorted({module} | _reached(graph, graph[module])):
                if any(name.split(".")[0] in ("jax", "flax", "optax", "orbax") for name in imports.get(other, ())):
                    found.append(f"{module}: must not need JAX, but {other} imports it")
    return found


def _reached(graph: dict[str, set[str]], starts: set[str]) -> set[str]:
    seen, todo = set(), list(starts)
    while todo:
        if (node := todo.pop()) not in seen:
            seen.add(node)
            todo += graph.get(node, ())
    return seen


def _module(name: Path) -> str:
    return ".".join(name.with_suffix("").parts).removesuffix(".__init__")


def _package(module: str) -> str:
    """paxlike.train.loop -> train; paxlike.config -> config; paxlike -> ""."""
    return module.split(".")[1] if "." in module else ""


def _inside(module: str) -> str:
    return "/".join(module.split(".")[1:]) + "/"


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def _known(name: str, modules: dict) -> str | None:
    """The module that an imported dotted name lies in, if it is one of the house."""
    return name if name in modules else name.rpartition(".")[0] if name.rpartition(".")[0] in modules else None


if __name__ == "__main__":
    violations = check(Path(__file__).resolve().parents[1])
    print("\n".join(violations))
    sys.exit(bool(violations))
