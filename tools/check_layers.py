"""Checks the shape of the house: which room may import which, what may load torch, how long things may be.

    python tools/check_layers.py [ROOT]

Reads every import with `ast` (nothing is executed) and prints one line for each breach: `file:line: what`. The rules:
imports point downward, processes do not import each other, no circle between rooms or between the files of a room, no torch at the start of a
process that must start in a second, files <= 400 lines, functions <= 60 (or a comment `# long because: ...`), no
`eval`, `exec` or pickle, no `trust_remote_code=True`, no bare `except`. Exit status 1 if there is any breach.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "lightllm"

FLOORS: list[tuple[str, list[str]]] = [
    # From the top down. A room may import every floor beneath and, where that makes no circle, its own.
    (
        "launch",
        [
            "__main__",
            "server",
            "cluster",
            "simulate",
            "llm",
            "engine",
            "offline_ranks",
            "offline_images",
            "offline_prompts",
            "offline_vectors",
            "chat",
            "cli",
            "bench",
            "client",
        ],
    ),
    ("processes", ["httpserver", "router", "backend", "detokenizer", "visual", "cache", "metrics", "health"]),
    ("model side", ["models", "weights", "layers", "quantization", "distributed", "ops"]),
    (
        "ground",
        [
            "protocol",
            "ipc",
            "http",
            "parsers",
            "model_folder",
            "tokenizer",
            "templating",
            "constraints",
            "images",
            "config",
            "config_sources",
            "command_line",
            "foreign_options",
            "option_spec",
            "round_sizes",
            "sampling_params",
            "parameter_spec",
            "errors",
            "machine",
            "demo",
        ],
    ),
]
"""Every room of the package by its module path; the longest match counts."""

APART = "processes"
"""On this floor no room may import another."""

APIS = [
    f"httpserver.{name}"
    for name in ("openai", "openai_responses", "anthropic", "ollama", "native", "pooling")
]
LOWER_PARTS = {
    "router.memory": ["router.admission", "router.planning"],
    "httpserver.reading": [*APIS, "httpserver.operating"],
    "httpserver.operating": APIS,
    # Responses, Messages and Ollama's requests are read into the OpenAI chat that they mean.
    **{api: [other for other in APIS if other not in (api, APIS[0])] for api in APIS},
    "httpserver.native": [api for api in APIS if api != "httpserver.native"],
}
"""Sub-rooms, each with the sub-rooms of the same room that lie above or beside it and that it may not import."""

TORCH_FREE = [
    "server", "cluster", "simulate", "llm", "offline_prompts", "offline_vectors", "chat", "cli", "bench", "client", "httpserver", "router", "detokenizer", "cache", "metrics", "health",
    "protocol", "ipc", "http", "parsers", "model_folder", "tokenizer", "templating", "constraints", "images", "config", "config_sources", "command_line",
    "foreign_options", "option_spec", "round_sizes", "sampling_params", "parameter_spec", "errors", "machine", "demo", "backend.mock",
    "models.architectures", "models.tasks", "models.pooled_head", "models.config", "models.hf_configs", "quantization.formats", "ops.cpu_kind",
]  # fmt: skip
"""Importing these must load none of HEAVY, not even through another module of the package."""

HEAVY = {"torch", "transformers", "triton"}
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle", "weights_only"}
PICKLES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle"}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SHIPPED = [PACKAGE, "tools", "demo_model"]
"""Folders whose code users run: safety rules apply."""
MEASURED = [PACKAGE, "tools", "demo_model", "test"]
"""Folders whose files and functions are measured."""


@dataclasses.dataclass(frozen=True)
class Import:
    target: str
    """Dotted module path."""
    line: int
    at_start: bool
    """Runs when the module is imported (not inside a function, not under TYPE_CHECKING)."""


def main(argv: list[str]) -> int:
    root = Path(argv[0]) if argv else Path(__file__).resolve().parent.parent
    breaches = check(root)
    for breach in breaches:
        print(breach)
    if not breaches:
        print(f"layers: {len(list((root / PACKAGE).rglob('*.py')))} modules in order")
    return 1 if breaches else 0


def check(root: Path) -> list[str]:
    """All breaches under `root`, as `file:line: what`, in order."""
    breaches: list[str] = []
    for folder in MEASURED:
        for path in sorted((root / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            try:
                tree = ast.parse(source, str(path))
            except SyntaxError as error:
                return [f"{path.relative_to(root)}:{error.lineno}: {error.msg}"]
            found = list(check_size(tree, source))
            if folder in SHIPPED:
                found += check_safety(tree)
            breaches += [f"{path.relative_to(root)}:{line}: {what}" for line, what in sorted(found)]
    return breaches + check_imports(root)


# -- imports


def check_imports(root: Path) -> list[str]:
    modules = find_modules(root)
    imports = {
        name: list(
            read_imports(ast.parse(path.read_text(encoding="utf-8"), str(path)), name, path, set(modules))
        )
        for name, path in modules.items()
    }
    breaches = []
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        where = path.relative_to(root)
        if name != PACKAGE and room_of(name) is None:
            breaches.append(
                f"{where}:1: the module belongs to no room; add it to FLOORS in tools/check_layers.py"
            )
            continue
        for entry in imports[name]:
            what = forbidden(name, entry.target)
            if what:
                breaches.append(f"{where}:{entry.line}: {what}")
            source, target = room_of(name), room_of(entry.target)
            if source and target and source != target:
                edges.setdefault(source, set()).add(target)
    breaches += [
        f"{PACKAGE}: the rooms {' -> '.join(circle)} import in a circle" for circle in find_circles(edges)
    ]
    files = {
        name: {entry.target for entry in entries if entry.target in modules and entry.target != name}
        for name, entries in imports.items()
    }
    breaches += [
        f"{PACKAGE}: the files {' -> '.join(circle)} import in a circle"
        for circle in find_circles(files)
        if len({room_of(name) for name in circle}) == 1
    ]
    return breaches + check_heavy(root, modules, imports)


def find_modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    modules = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def read_imports(tree: ast.Module, name: str, path: Path, modules: set[str]) -> Iterator[Import]:
    """Every import of a module, relative ones resolved, `from package import module` as that module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, at_start in walk_imports(tree, True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_start)
            continue
        base = node.module or ""
        if node.level:
            parents = package.split(".")
            base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            # LLM and SamplingParams are re-exports: whoever takes them from the top imports the top.
            lazy = base == PACKAGE and full not in modules and alias.name != "__version__"
            yield Import(
                f"{PACKAGE}.llm" if lazy else full if full in modules else base, node.lineno, at_start
            )


def walk_imports(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in statements_of(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_start
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from walk_imports(child, False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from walk_imports(ast.Module([statement], []), False)
            yield from walk_imports(ast.Module(child.orelse, []), at_start)
        else:
            yield from walk_imports(child, at_start)


def statements_of(node: ast.AST) -> Iterator[ast.AST]:
    """The statements directly inside a node, and what may hold more of them; expressions, most of a tree, are left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield child


def walk_statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in statements_of(node):
        yield child
        yield from walk_statements(child)


def room_of(module: str) -> str | None:
    """The room of a module of the package; None for the package itself and everything outside."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    rooms = {room for _, names in FLOORS for room in names}
    for length in range(len(parts), 1, -1):
        room = ".".join(parts[1:length])
        if room in rooms:
            return room
    return None


def inside(module: str, part: str) -> bool:
    return f"{module}.".startswith(f"{PACKAGE}.{part}.")


def floor_of(room: str) -> int:
    return next(level for level, (_, rooms) in enumerate(FLOORS) if room in rooms)


def forbidden(module: str, target: str) -> str | None:
    """Why `module` may not import `target`; None if it may."""
    for part, above in LOWER_PARTS.items():
        if inside(module, part) and any(inside(target, other) for other in above):
            return f"{part} imports {target}, which lies above or beside it"
    source_room, target_room = room_of(module), room_of(target)
    if source_room is None or target_room is None or source_room == target_room:
        return None
    source, below = floor_of(source_room), floor_of(target_room)
    if below < source:
        return f"{source_room} imports {target}, which is a floor above ({FLOORS[below][0]})"
    if below == source and FLOORS[source][0] == APART:
        return f"{source_room} imports {target}: processes do not import each other"
    return None


def find_circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """One circle for each room that is the first of a circle, in order of names."""
    circles: list[list[str]] = []
    done: set[str] = set()

    def visit(room: str, path: list[str]) -> None:
        if room in path:
            circles.append([*path[path.index(room) :], room])
            return
        if room in done:
            return
        for target in sorted(edges.get(room, ())):
            visit(target, [*path, room])
        done.add(room)

    for room in sorted(edges):
        visit(room, [])
    return circles


def check_heavy(root: Path, modules: dict[str, Path], imports: dict[str, list[Import]]) -> list[str]:
    """Modules of torch-free rooms whose import reaches a heavy library, with the way that leads to it."""
    breaches = []
    for name, path in modules.items():
        parts = name.split(".")[1:]
        if parts and not any(".".join(parts[: len(free.split("."))]) == free for free in TORCH_FREE):
            continue
        way = way_to_heavy(name, imports)
        if way:
            line = next(
                entry.line for entry in imports[name] if entry.at_start and leads_to(way[1], entry.target)
            )
            breaches.append(
                f"{path.relative_to(root)}:{line}: importing it loads {way[-1]} ({' -> '.join(way)})"
            )
    return breaches


def leads_to(step: str, target: str) -> bool:
    return step == target or target.startswith(step + ".")


def way_to_heavy(name: str, imports: dict[str, list[Import]]) -> list[str]:
    """The shortest chain of start-time imports from a module to a heavy library; empty if there is none."""
    ways, seen = [[name]], {name}
    for way in ways:
        for entry in imports.get(way[-1], []):
            if not entry.at_start:
                continue
            parts = entry.target.split(".")
            if parts[0] in HEAVY:
                return [*way, parts[0]]
            # importing a.b.c runs a and a.b too
            for length in range(2, len(parts) + 1):
                step = ".".join(parts[:length])
                if step in imports and step not in seen:
                    seen.add(step)
                    ways.append([*way, step])
    return []


# -- size and safety


def check_size(tree: ast.Module, source: str) -> Iterator[tuple[int, str]]:
    lines = source.splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield 1, f"the file has {len(lines)} lines, at most {MAX_FILE_LINES}"
    for node in walk_statements(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            last = node.end_lineno or node.lineno
            reason = any("# long because: " in line for line in lines[max(first - 2, 0) : last])
            if last - node.lineno + 1 > MAX_FUNCTION_LINES and not reason:
                length = last - node.lineno + 1
                yield (
                    node.lineno,
                    f"{node.name} has {length} lines, at most {MAX_FUNCTION_LINES} (or `# long because: ...`)",
                )


def check_safety(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg in UNSAFE_KEYWORDS}
            if name in ("eval", "exec"):
                yield node.lineno, f"{name}() runs text as code"
            if keywords.get("trust_remote_code") == "True":
                yield (
                    node.lineno,
                    "trust_remote_code=True runs code from a model folder; pass the option's value",
                )
            if keywords.get("allow_pickle") == "True":
                yield node.lineno, "allow_pickle=True runs code from data"
            if name == "torch.load" and keywords.get("weights_only") != "True":
                yield node.lineno, "torch.load without weights_only=True runs code from a file"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield node.lineno, "bare except: name what is handled"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in PICKLES:
                    yield node.lineno, f"{alias.name} runs code from data"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
            yield node.lineno, f"{node.module} runs code from data"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
