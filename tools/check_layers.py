"""Checks the layers of the package and who may import which library, and finds dangerous calls.

    python tools/check_layers.py        prints one line for each violation; exits with 1 if any

It reads the source with `ast` and imports nothing.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

# From the lowest. A package may import its own layer and lower ones; "" is paxlike/__init__.py.
LAYERS = [
    ["", "config"],
    ["files"],
    ["parallel", "accounting", "architecture"],
    ["quant", "data", "optim"],
    ["nn"],
    ["models"],
    ["adapt"],
    ["training", "planning", "infer"],
    ["interop"],
    ["api"],
    ["commands"],
    ["cli", "__main__"],
]
LAYER = {package: level for level, packages in enumerate(LAYERS) for package in packages}

# Library -> the files and folders (ending in /) that may import it.
IMPORTERS = {
    "flax": ("interop/t5x.py", "interop/t5x_module.py"),
    "optax": ("optim/",),
    "orbax": ("training/checkpoint.py",),
    "grain": ("data/grain_source.py",),
    "tyro": ("commands/",),
    "safetensors": ("training/packed.py",),
    "seqio": ("data/seqio_source.py",),
    "tensorflow": ("data/seqio_source.py",),
    "tensorstore": ("training/checkpoint_reader.py", "interop/t5x.py"),
    "lm_eval": ("interop/lm_eval_harness.py",),
    "starlette": ("interop/serve.py",),
    "uvicorn": ("interop/serve.py",),
    "tokenizers": ("data/huggingface_tokenizer.py", "interop/hf_tokenizer.py"),
    "pyarrow": ("data/tables.py",),
    "jinja2": ("data/chat/jinja_environment.py",),
    "jax.distributed": ("parallel/runtime.py",),
    "pathwaysutils": ("parallel/runtime.py",),
    # It hides an import from these checks.
    "importlib.import_module": ("__init__.py", "cli.py", "parallel/compilers.py"),
}
# The keys above that are attributes of a module, rather than modules.
ATTRIBUTES = ("jax.distributed", "importlib.import_module")
NO_JAX = ("config/", "accounting/", "architecture/")
JAX = ("jax", "flax", "optax", "orbax")
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve"}
# Imported inside functions: heavy libraries that few runs use anywhere; in the packages of commands
# also what would make every command start slowly.
LATE = {
    "pyarrow",
    "jinja2",
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
    "pandas",
    "jax.experimental.pallas",
}
LATE_IN_COMMANDS = LATE | {"jax", "rich", "tyro", "paxlike"}
COMMANDS = ("api", "commands", "cli")


def check(root: Path) -> list[str]:
    """Violations in `root`/paxlike and `root`/launch, each as "file:line: what is wrong"."""
    found, imports = [], {}
    for path in sorted([*root.glob("paxlike/**/*.py"), *root.glob("launch/**/*.py")]):
        name = path.relative_to(root)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        violations = [*dangers(tree), *importers(tree, name)]
        if name.parts[0] == "paxlike":
            violations += layers(tree, name)
            imports[_module(name)] = {dotted for _, dotted, _ in imported(tree, name)}
        found += [f"{name}:{line}: {message}" for line, message in sorted(violations)]
    return found + cycles(imports) + needs_jax(imports)


def imported(tree: ast.Module, name: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, dotted name, inside a function?) of every import; `from a import b` gives a.b, which
    may be a module."""
    package = name.parent.as_posix().replace("/", ".").split(".")
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    never = _only_for_types(tree) if name.as_posix() == "paxlike/__init__.py" else set()
    for node in ast.walk(tree):
        if id(node) in never:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, dotted, id(node) in late) for dotted in names)


def _only_for_types(tree: ast.Module) -> set[int]:
    """The nodes inside `if TYPE_CHECKING:`, which are never run.

    `paxlike/__init__.py` has such imports, of the API that it imports on first use.
    """
    blocks = [
        statement
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    ]
    return {id(node) for statement in blocks for node in ast.walk(statement)}


def layers(tree: ast.Module, name: Path) -> Iterator[tuple[int, str]]:
    """Imports from a higher layer, and imports inside functions."""
    own = _package(_module(name))
    if own not in LAYER:
        yield 1, f"the package {own!r} has no layer: add it to LAYERS in tools/check_layers.py"
        return
    for line, dotted, late in imported(tree, name):
        target = _package(dotted)
        # Other names of `paxlike` are those of the Python API.
        level = 0 if target == "__version__" else LAYER.get(target, LAYER["api"])
        if dotted.split(".")[0] == "paxlike" and level > LAYER[own]:
            yield line, f"imports {dotted} from a higher layer ({own} -> {target})"
        allowed = LATE_IN_COMMANDS if own in COMMANDS else LATE
        if late and not any(f"{dotted}.".startswith(f"{library}.") for library in allowed):
            yield line, f"imports {dotted} inside a function; move it to the head of the file"


def importers(tree: ast.Module, name: Path) -> Iterator[tuple[int, str]]:
    """Libraries used outside of the files that may import them."""
    inside = name.as_posix().removeprefix("paxlike/")
    used = [(line, dotted) for line, dotted, _ in imported(tree, name)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ATTRIBUTES:
            used.append((node.lineno, ast.unparse(node)))
    for line, dotted in used:
        for library, places in IMPORTERS.items():
            if f"{dotted}.".startswith(f"{library}.") and not inside.startswith(places):
                yield line, f"uses {dotted}; {library} may be used in {', '.join(places)} only"


def dangers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Code that executes the contents of a file or of a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            names = modules + [
                f"{module}.{alias.name}" for module in modules for alias in node.names
            ]
            yield from (
                (node.lineno, f"imports {n}")
                for n in names
                if n in PICKLES or n in ("os.system", "os.popen")
            )
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "os.system", "os.popen"):
                yield node.lineno, f"calls {called}"
            for keyword in node.keywords:
                # Anything but a literal False: a variable could be True.
                value = ast.unparse(keyword.value)
                if keyword.arg in ("shell", "allow_pickle") and value != "False":
                    yield node.lineno, f"calls {called} with {keyword.arg}={value}"


def cycles(imports: dict[str, set[str]]) -> list[str]:
    """Import cycles among modules, and among packages (train -> infer -> train through different
    modules)."""
    modules = {
        module: {_known(name, imports) for name in names} - {None}
        for module, names in imports.items()
    }
    packages: dict[str, set[str]] = {}
    for module, targets in modules.items():
        own = _package(module)
        packages.setdefault(own, set()).update({_package(target) for target in targets} - {own})
    found = []
    for kind, graph in (("modules", modules), ("packages", packages)):
        for start in sorted(graph):
            if start in _reached(graph, graph[start]):
                through = ", ".join(sorted(graph[start]))
                found.append(f"{start}: is in an import cycle of {kind}, through one of {through}")
    return found


def needs_jax(imports: dict[str, set[str]]) -> list[str]:
    """Modules of NO_JAX that import JAX, or import a module that does."""
    # Importing a.b.c runs a/__init__.py and a/b/__init__.py first.
    graph = {
        module: {_known(name, imports) for name in names} - {None} | _parents(module)
        for module, names in imports.items()
    }
    found = []
    for module in sorted(graph):
        if _inside(module).startswith(NO_JAX):
            for other in sorted({module} | _reached(graph, graph[module])):
                if any(name.split(".")[0] in JAX for name in imports.get(other, ())):
                    found.append(f"{module}: must not import JAX, but {other} imports it")
    return found


def _reached(graph: dict[str, set[str]], starts: set[str]) -> set[str]:
    seen, queue = set(), list(starts)
    while queue:
        if (node := queue.pop()) not in seen:
            seen.add(node)
            queue += graph.get(node, ())
    return seen


def _module(name: Path) -> str:
    return ".".join(name.with_suffix("").parts).removesuffix(".__init__")


def _package(module: str) -> str:
    """paxlike.training.loop -> train; paxlike.config -> config; paxlike -> ""."""
    return module.split(".")[1] if "." in module else ""


def _inside(module: str) -> str:
    return "/".join(module.split(".")[1:]) + "/"


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def _known(name: str, modules: dict) -> str | None:
    """The module of this package that an imported dotted name is, or is in."""
    return next((n for n in (name, name.rpartition(".")[0]) if n in modules), None)


if __name__ == "__main__":
    violations = check(Path(__file__).resolve().parents[1])
    print("\n".join(violations))
    sys.exit(bool(violations))
