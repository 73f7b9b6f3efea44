"""Compiles the Triton kernels ahead of time, without a GPU, and checks what ptxas made of them.

    python tools/compile_kernels.py               what `make test` compiles: short cases, each for one architecture in turns
    python tools/compile_kernels.py --all         every case of every kernel
    python tools/compile_kernels.py --all --write docs/kernels.json    and keep the figures for docs/kernels.md

A case fails if it does not compile, if it spills registers (a stack frame in the compiled code: `cuobjdump -res-usage`), if
it wants more shared memory than a block can have, if Hopper's tensor core products wait for each other (see `serialized`), or if it
is launched before the kernel before it has ended (PDL) and does not wait for it, or touches memory that its case does not
name before it waits. Results are kept under build/kernels/ by a hash of the kernel's
source, its configuration and Triton's version. Exit status 1 if any case fails or a shipped configuration has no case.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "kernels"
PACKAGE = "lightllm.ops.triton"
CASES = "kernels"
"""The package beside this file that lists what is compiled."""
SHARED_LIMIT = {80: 166912, 89: 101376, 90: 232448, 100: 232448}
"""Bytes of shared memory that one block can have (CUDA C++ programming guide, table of compute capabilities)."""
PDL_INSTRUCTIONS = ("griddepcontrol.wait", "griddepcontrol.launch_dependents")


@dataclasses.dataclass(frozen=True)
class Task:
    """One case with one shipped configuration for one architecture."""

    module: str
    number: int
    """Of the case in the module's COMPILE_CASES."""
    config: str
    """Name of the configuration file."""
    architecture: int


@dataclasses.dataclass(frozen=True)
class Result:
    kernel: str
    case: str
    config: str
    launch: dict[str, Any]
    architecture: int
    registers: int = 0
    stack: int = 0
    """Bytes of stack frame a thread: above 0 registers were spilled."""
    shared: int = 0
    """Bytes a block."""
    serialized: bool = False
    """See the function of this name."""
    error: str = ""

    @property
    def problem(self) -> str:
        if self.error:
            return self.error
        if self.stack:
            return f"spills: a stack frame of {self.stack} bytes"
        if self.serialized:
            return "ptxas made every wgmma wait for the one before it: see docs/kernels.md"
        if self.shared > SHARED_LIMIT[self.architecture]:
            return f"{self.shared} bytes of shared memory, at most {SHARED_LIMIT[self.architecture]}"
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--all", action="store_true", help="every case, not only the short list of `make test`"
    )
    parser.add_argument("--kernel", action="append", help="only modules with this name; may be repeated")
    parser.add_argument(
        "--module", action="append", help="a module with cases from elsewhere, by its full name"
    )
    parser.add_argument("--write", type=Path, help="file for the results as JSON")
    parser.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="compilations at a time"
    )
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set: interpreted kernels are not compiled")
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE / "triton"))
    modules = options.module or list(kernel_modules(options.kernel))
    tasks = find_tasks(modules, options.all or bool(options.module))
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        results = list(pool.map(run, tasks, chunksize=4))
    failures = [f"{describe(result)}: {result.problem}" for result in results if result.problem]
    if options.all and not options.kernel and not options.module:
        failures += uncovered(modules)
    if options.write:
        write(options.write, results)
    for result in results:
        print(describe(result), f"registers {result.registers} shared {result.shared}")
    print(f"{len(results)} kernels compiled, {len(failures)} failures")
    for failure in failures:
        print("FAILED", failure)
    return 1 if failures else 0


def describe(result: Result) -> str:
    return f"{result.kernel} ({result.case}) sm_{result.architecture} {result.config} {result.launch}"


def kernel_modules(names: list[str] | None) -> Iterator[str]:
    """Modules that declare cases, by name."""
    package = importlib.import_module(CASES)
    for info in pkgutil.iter_modules(package.__path__):
        if names is None or info.name in names:
            if hasattr(importlib.import_module(f"{CASES}.{info.name}"), "COMPILE_CASES"):
                yield f"{CASES}.{info.name}"


def find_tasks(modules: Iterable[str], everything: bool) -> list[Task]:
    """everything: all cases for all their architectures; else the short ones, each for one of them in turns."""
    tasks, turn = [], 0
    for module in modules:
        for number, case in enumerate(importlib.import_module(module).COMPILE_CASES):
            if not (case.short or everything):
                continue
            for config, _, architectures in configurations(case):
                chosen = architectures if everything else architectures[turn % len(architectures) :][:1]
                tasks += [Task(module, number, config, architecture) for architecture in chosen]
                turn += 1
    return tasks


def configurations(case: Any) -> Iterator[tuple[str, dict[str, Any], tuple[int, ...]]]:
    """(file, options, architectures) of every shipped configuration that a case would be launched with."""
    launch = importlib.import_module(f"{PACKAGE}.launch")
    default: dict[str, Any] = {}
    if case.config:
        default = launch.select_entry(launch.read_configs(launch.DEFAULT)[case.config], dict(case.sizes))
    yield launch.DEFAULT, {**default, **case.launch}, case.architectures
    for path in config_files():
        options = _selected(launch.read_configs(path.stem).get(case.config, []), dict(case.sizes))
        shipped_for = json.loads(path.read_text(encoding="utf-8"))["architectures"]
        if options is not None and options != default:
            yield path.stem, {**options, **case.launch}, tuple(set(shipped_for) & set(case.architectures))


def _selected(entries: list[dict[str, Any]], sizes: dict[str, int]) -> dict[str, int] | None:
    """None if the file has no entry for these sizes: then the defaults are used."""
    try:
        return importlib.import_module(f"{PACKAGE}.launch").select_entry(entries, sizes)
    except LookupError:
        return None


def config_files() -> list[Path]:
    """Those of particular GPUs."""
    launch = importlib.import_module(f"{PACKAGE}.launch")
    return sorted(path for path in launch.CONFIGS.glob("*.json") if path.stem != launch.DEFAULT)


def uncovered(modules: Iterable[str]) -> list[str]:
    """Entries of the configuration files that no case is compiled with."""
    launch = importlib.import_module(f"{PACKAGE}.launch")
    cases = [case for module in modules for case in importlib.import_module(module).COMPILE_CASES]
    found = []
    for name in [launch.DEFAULT, *(path.stem for path in config_files())]:
        for kernel, entries in launch.read_configs(name).items():
            sizes = [dict(case.sizes) for case in cases if case.config == kernel]
            used = [_selected(entries, size) for size in sizes]
            for entry in entries:
                if {key: value for key, value in entry.items() if key != "up_to"} not in used:
                    found.append(f"{name}.json: {kernel} {entry} is compiled by no case")
    return found


# -- one compilation


def run(task: Task) -> Result:
    """Compiles one task, or takes what an earlier run found."""
    import triton

    case = importlib.import_module(task.module).COMPILE_CASES[task.number]
    options = next(launch for config, launch, _ in configurations(case) if config == task.config)
    kernel = case.kernel
    arguments, launch = split_options(kernel, {**case.arguments, **options}, task.architecture)
    identity = [
        PDL_INSTRUCTIONS,
        ["serialized", "before the wait", bool(case.before_wait)] if task.architecture == 90 else [],
        kernel.cache_key,
        sorted(map(repr, arguments.items())),
        launch,
        task.architecture,
        triton.__version__,
    ]
    cached = CACHE / (hashlib.sha256(repr(identity).encode()).hexdigest() + ".json")
    result = Result(kernel.__name__, case.label, task.config, options, task.architecture)
    if cached.exists():
        return dataclasses.replace(result, **json.loads(cached.read_text(encoding="utf-8")))
    try:
        usage = compile_case(kernel, arguments, launch, task.architecture, bool(case.before_wait))
    except Exception as error:  # whatever the compiler raises is this case's result
        return dataclasses.replace(result, error=f"{type(error).__name__}: {error}")
    cached.parent.mkdir(parents=True, exist_ok=True)
    temporary = cached.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(usage), encoding="utf-8")
    temporary.replace(cached)
    return dataclasses.replace(result, **usage)


def split_options(
    kernel: Any, values: dict[str, Any], architecture: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments of the kernel, options of the compiler), with dependent launch as it is on that architecture."""
    if "PDL" in kernel.arg_names:
        values = {"PDL": architecture >= 90, **values}
        if values["PDL"]:
            values = {"launch_pdl": True, **values}
    arguments = {name: values.pop(name) for name in kernel.arg_names}
    return arguments, values


def compile_case(
    kernel: Any, arguments: dict[str, Any], options: dict[str, Any], architecture: int, reads_early: bool
) -> dict[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, (name, value) in enumerate(arguments.items()):
        if not isinstance(value, str):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name], _, divisor = value.partition(":")
        if divisor:
            attributes[(place,)] = [["tt.divisibility", int(divisor)]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    if arguments.get("PDL"):
        missing = [instruction for instruction in PDL_INSTRUCTIONS if instruction not in compiled.asm["ptx"]]
        if missing:
            raise RuntimeError(f"dependent launch without {', '.join(missing)}")
    watched = bool(arguments.get("PDL")) and architecture == 90
    listing = disassembled(compiled.asm["cubin"], code=watched or "wgmma" in compiled.asm["ptx"])
    if watched and (hasty := too_early(listing, reads_early)):
        raise RuntimeError(f"{', '.join(hasty)} before it waits for the kernel before it")
    registers, stack = resource_usage(listing)
    usage = {"registers": registers, "stack": stack, "shared": compiled.metadata.shared}
    return {**usage, "serialized": serialized(listing)}


def disassembled(cubin: bytes, code: bool) -> str:
    """What the machine code uses, and, where `code` is wanted, itself as text: that takes as long as compiling."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", *(["-sass"] if code else []), file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout


def serialized(listing: str) -> bool:
    """Whether each of a kernel's wgmma instructions is a group of its own, waited for before the next one.

    ptxas does that (its message C7515) where accumulators are written by anything but wgmma while a group is under way: one
    zeroed on a path that leaves a loop out is enough. The result is right, and slow.
    """
    return listing.count("HGMMA") > 1 and listing.count("WARPGROUP.ARRIVE") >= listing.count("HGMMA")


def too_early(listing: str, reads_early: bool) -> list[str]:
    """Instructions on memory (with reads_early but for plain loads) before the wait for the kernel before (ACQBULK), and the word
    to the kernel behind (PREEXIT), in the order of the code. That one may write what is read here; and what that one reads,
    or still writes, may not be written."""
    code = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", listing)
    waits = [place for place, instruction in enumerate(code) if "ACQBULK" in instruction]
    before = code[: waits[0]] if waits else code
    found = {match.group() for instruction in before if (match := _ON_MEMORY.search(instruction))}
    return sorted(found - {"LDG"} if reads_early else found)


_ON_MEMORY = re.compile(r"\b(LDG|LDGSTS|STG|ST|RED|REDG|ATOM|ATOMG|UBLKCP|UTMALDG|UTMASTG|PREEXIT)\b")


def resource_usage(listing: str) -> tuple[int, int]:
    """(registers a thread, bytes of stack a thread), the largest of the code's functions."""
    found = re.findall(r"REG:(\d+) STACK:(\d+)", listing)
    if not found:
        raise RuntimeError(f"cuobjdump reports no resource usage: {listing[:1000]!r}")
    return max(int(registers) for registers, _ in found), max(int(stack) for _, stack in found)


def write(path: Path, results: list[Result]) -> None:
    """One line for each case with one choice of blocks and warps: figures by architecture."""
    import triton

    lines: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for result in results:
        line = lines.setdefault(
            (result.kernel, result.case, result.config, repr(result.launch)),
            {"kernel": result.kernel, "case": result.case, "config": result.config, "launch": result.launch}
            | {name: {} for name in ("registers", "stack", "shared")},
        )
        for name in ("registers", "stack", "shared"):
            line[name][str(result.architecture)] = getattr(result, name)
    text = ",\n".join("    " + json.dumps(line) for line in lines.values())
    path.write_text(
        f'{{\n  "triton": "{triton.__version__}",\n  "cases": [\n{text}\n  ]\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    sys.exit(main())
