"""tools/check_layers.py: every kind of breach is seen on made-up trees. The package itself is checked by `make lint`."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_layers", ROOT / "tools" / "check_layers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_layers"] = module
    spec.loader.exec_module(module)
    return module


checker = load_checker()


def breaches(tmp_path: Path, **files: str) -> list[str]:
    """Checks a tree; `router__scheduler="..."` is lightllm/router/scheduler.py."""
    (tmp_path / "lightllm").mkdir(exist_ok=True)
    (tmp_path / "lightllm" / "__init__.py").touch()
    for name, source in files.items():
        path = tmp_path / "lightllm" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
    return checker.check(tmp_path)


def test_a_lower_part_of_a_room_does_not_import_one_above_it(tmp_path: Path) -> None:
    found = breaches(
        tmp_path,
        router__memory__tree="from lightllm.router.planning.planner import P",
        router__planning__planner="from lightllm.router import request\nimport lightllm.router.memory.slots",
        router__memory__slots="from lightllm.router.request import R",
        router__request="",
    )
    assert found == [
        "lightllm/router/memory/tree.py:1: router.memory imports lightllm.router.planning.planner, which lies above or beside it"
    ]


def test_downward_imports_pass(tmp_path: Path) -> None:
    assert breaches(
        tmp_path,
        config="",
        protocol__messages="from lightllm.config import x",
        router__scheduler="import lightllm.protocol.messages",
        server__supervisor="from lightllm.router.scheduler import S",
    ) == []  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        "import lightllm.router.scheduler",
        "from lightllm.router import scheduler",
        "from lightllm.router.scheduler import Scheduler",
        "from ..router.scheduler import Scheduler",
        "from .. import router",
        "def f():\n    from lightllm.router import scheduler",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightllm.router import scheduler",
    ],
)
def test_an_upward_import_is_seen_in_every_spelling(tmp_path: Path, source: str) -> None:
    found = breaches(tmp_path, router__scheduler="", protocol__messages=source)
    assert len(found) == 1 and "protocol imports lightllm.router" in found[0] and "floor above" in found[0]
    assert found[0].startswith(f"lightllm/protocol/messages.py:{len(source.splitlines())}: ")


def test_a_process_may_not_import_another(tmp_path: Path) -> None:
    found = breaches(tmp_path, router__a="", httpserver__b="import lightllm.router.a")
    assert len(found) == 1 and "processes do not import each other" in found[0]


def test_a_circle_between_rooms_of_one_floor_is_seen(tmp_path: Path) -> None:
    found = breaches(tmp_path, layers__a="import lightllm.ops.b", ops__b="import lightllm.layers.a")
    assert found == ["lightllm: the rooms layers -> ops -> layers import in a circle"]


@pytest.mark.parametrize(
    "back",
    [
        "import lightllm.ops.a",
        "from lightllm.ops import a",
        "def f():\n    from lightllm.ops.a import g",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightllm.ops import a",
    ],
)
def test_a_circle_between_files_of_one_room_is_seen_in_every_spelling(tmp_path: Path, back: str) -> None:
    found = breaches(tmp_path, ops__a="import lightllm.ops.b", ops__b="import lightllm.ops.c", ops__c=back)
    assert found == [
        "lightllm: the files lightllm.ops.a -> lightllm.ops.b -> lightllm.ops.c -> lightllm.ops.a import in a circle"
    ]


def test_files_of_one_room_that_import_in_one_direction_pass(tmp_path: Path) -> None:
    files = {"ops__a": "import lightllm.ops.b\nimport lightllm.ops.c", "ops__b": "import lightllm.ops.c"}
    assert breaches(tmp_path, **files, ops__c="") == []


def test_layers_may_import_operations_but_not_the_models(tmp_path: Path) -> None:
    files = {"ops__batch": "", "models__llama": "import lightllm.layers.linear"}
    assert breaches(tmp_path, **files, layers__linear="import lightllm.ops.batch") == []
    assert "circle" in breaches(tmp_path, **files, layers__linear="import lightllm.models.llama")[0]


def test_the_lazy_names_of_the_package_count_as_the_top_floor(tmp_path: Path) -> None:
    assert breaches(tmp_path, llm="", httpserver__a="from lightllm import __version__") == []
    assert "floor above" in breaches(tmp_path, httpserver__a="from lightllm import LLM")[0]


@pytest.mark.parametrize(
    "room", ["router", "httpserver", "detokenizer", "tokenizer", "server", "http", "ipc", "protocol"]
)
def test_torch_at_the_start_of_a_light_room_is_seen(tmp_path: Path, room: str) -> None:
    found = breaches(tmp_path, **{f"{room}__a": "x = 1\nimport torch.nn"})
    assert len(found) == 1 and found[0].startswith(f"lightllm/{room}/a.py:2: importing it loads torch")


def test_torch_behind_other_modules_is_seen_with_the_way_to_it(tmp_path: Path) -> None:
    found = breaches(tmp_path, server__a="from lightllm.ops.b import f", ops__b="import transformers")
    assert found == [
        "lightllm/server/a.py:1: importing it loads transformers (lightllm.server.a -> lightllm.ops.b -> transformers)"
    ]


def test_torch_inside_a_function_or_for_types_only_passes(tmp_path: Path) -> None:
    lazy = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import torch\n"
    )
    assert breaches(tmp_path, router__a=lazy, backend__b="import torch") == []


def test_torch_under_a_condition_that_holds_is_seen(tmp_path: Path) -> None:
    assert breaches(tmp_path, router__a="try:\n    import torch\nexcept ImportError:\n    torch = None\n")


def test_a_module_outside_every_room_is_seen(tmp_path: Path) -> None:
    assert "belongs to no room" in breaches(tmp_path, utils="")[0]


def test_a_long_file_is_seen(tmp_path: Path) -> None:
    assert breaches(tmp_path, config="x = 1\n" * 400) == []
    assert breaches(tmp_path, config="x = 1\n" * 401) == [
        "lightllm/config.py:1: the file has 401 lines, at most 400"
    ]


def test_a_long_function_needs_a_reason_beside_it(tmp_path: Path) -> None:
    body = "    x = 1\n" * 60
    assert breaches(tmp_path, config="def f():\n" + body[:-10]) == []
    assert "f has 61 lines" in breaches(tmp_path, config="def f():\n" + body)[0]
    assert breaches(tmp_path, config="# long because: one table\ndef f():\n" + body) == []
    assert breaches(tmp_path, config="def f():\n    # long because: one table\n" + body) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "import pickle",
        "from pickle import loads",
        "import cloudpickle as c",
        "load(x, trust_remote_code=True)",
        "np.load(x, allow_pickle=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "try:\n    pass\nexcept:\n    pass",
    ],
)
def test_unsafe_code_is_seen(tmp_path: Path, source: str) -> None:
    assert len(breaches(tmp_path, config=source)) == 1


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "load(x, trust_remote_code=flag)", "torch.load(x, weights_only=True)",
     "try:\n    pass\nexcept Exception:\n    raise"],
)  # fmt: skip
def test_safe_code_passes(tmp_path: Path, source: str) -> None:
    assert breaches(tmp_path, config=source) == []


def test_a_file_that_is_not_python_is_one_line(tmp_path: Path) -> None:
    assert breaches(tmp_path, config="x = 1\ndef f(:\n    pass") == ["lightllm/config.py:2: invalid syntax"]


def test_the_command_line_fails_with_one_line_a_breach(tmp_path: Path) -> None:
    breaches(tmp_path, config="import lightllm.server.a", server__a="")
    command = [sys.executable, str(ROOT / "tools/check_layers.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "lightllm/config.py:1: config imports lightllm.server.a, which is a floor above (launch)"
    ]
