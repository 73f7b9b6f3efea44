"""tools/tune_kernels.py, on the interpreter: what it measures, chooses and writes."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.kernels import DEVICE

from lightllm.ops.triton import launch

TOOL = Path(__file__).parents[3] / "tools/tune_kernels.py"
sys.path.insert(0, str(TOOL.parent))


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tune_kernels", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fastest_candidate_of_each_size_is_written_and_read_back(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = {1024: 3.0, 2048: 1.0, 4096: 2.0}
    measured: list[dict[str, int]] = []

    def fake_clock(run: object, device: object) -> float:
        config = launch.launch_config("embedding", DEVICE)
        measured.append(config)
        if config["BLOCK"] == 512:
            raise RuntimeError("does not compile")
        return durations[config["BLOCK"]] + config["num_warps"] / 100

    monkeypatch.setattr(tool, "microseconds", fake_clock)
    path = tmp_path / "GPU.json"
    assert tool.main(["embedding", "--device", "cpu", "--write", str(path)]) == 0
    written = json.loads(path.read_text())
    assert written["kernels"] == {"embedding": [{"BLOCK": 2048, "num_warps": 1}]}
    assert written["measured"] == ["embedding"] and len(measured) == 16
    assert launch.launch_config("embedding", DEVICE) not in measured[-1:]


def test_no_launch_is_the_first_one_of_its_variant_while_the_clock_runs(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decode attention makes its parts in the first launch, and starts without waiting for them from the second one on."""
    launches: list[str] = []

    def clock(run: Callable[[], None], **options: object) -> float:
        launches.append("clock")
        run()
        return 0.001

    monkeypatch.setattr(tool.triton.testing, "do_bench_cudagraph", clock)
    assert tool.microseconds(lambda: launches.append("launch"), torch.device("cuda")) == 1.0
    assert launches.index("clock") >= 2


def test_neighbouring_sizes_with_one_choice_share_an_entry(tool: ModuleType) -> None:
    entries = [
        {"up_to": {"size": 1}, "num_warps": 2},
        {"up_to": {"size": 4}, "num_warps": 2},
        {"up_to": {"size": 8}, "num_warps": 4},
        {"up_to": {}, "num_warps": 4},
    ]
    assert tool.merged(entries) == [{"up_to": {"size": 4}, "num_warps": 2}, {"num_warps": 4}]


def test_other_kernels_keep_their_entries(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "GPU.json"
    tool.write(path, "GPU", DEVICE, {"sample": [{"up_to": {}, "num_warps": 4}]})
    tool.write(path, "GPU", DEVICE, {"rotary": [{"up_to": {}, "num_warps": 1}]})
    written = json.loads(path.read_text())
    assert set(written["kernels"]) == {"rotary", "sample"} and written["measured"] == ["rotary", "sample"]


def test_an_unknown_kernel_is_an_error(tool: ModuleType) -> None:
    with pytest.raises(SystemExit):
        tool.main(["no_such_kernel", "--device", "cpu"])


@pytest.mark.slow
@pytest.mark.real_sizes
def test_every_case_runs_with_every_candidate(tool: ModuleType) -> None:
    for case in tool.tuning_cases():
        run = case.make(DEVICE)
        for candidate in case.candidates[:: max(len(case.candidates) // 3, 1)]:
            with launch.fixed_config(case.config, dict(candidate)):
                run()


def test_what_a_gpu_was_not_tuned_for_is_taken_from_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    default = launch.launch_config("rms_norm", DEVICE, size=4096)
    own = {"rms_norm": [{"up_to": {"size": 128}, "num_warps": 32}]}
    known = launch.read_configs
    monkeypatch.setattr(launch, "read_configs", lambda gpu: own if gpu == "GPU" else known(gpu))
    assert launch._find("rms_norm", "GPU", size=128) == {"num_warps": 32}
    assert launch._find("rms_norm", "GPU", size=4096) == default


def test_a_configuration_is_the_first_entry_whose_bounds_hold() -> None:
    entries = [
        {"up_to": {"size": 8, "tokens": 2}, "num_warps": 1},
        {"up_to": {"size": 8}, "num_warps": 2},
        {"num_warps": 4},
    ]
    sizes = [{"size": 8, "tokens": 2}, {"size": 8, "tokens": 3}, {"size": 9, "tokens": 1}]
    assert [launch.select_entry(entries, size)["num_warps"] for size in sizes] == [1, 2, 4]
    with pytest.raises(LookupError):
        launch.select_entry(entries[:1], sizes[2])


def test_every_file_of_configurations_names_its_gpu_and_only_kernels_that_exist() -> None:
    defaults = launch.read_configs(launch.DEFAULT)
    for path in launch.CONFIGS.glob("*.json"):
        content = json.loads(path.read_text())
        assert set(content) >= {"gpu", "architectures", "measured", "kernels"}
        assert set(content["kernels"]) <= set(defaults) and set(content["measured"]) <= set(
            content["kernels"]
        )


def test_dependent_launch_begins_with_hopper_unless_a_gpus_file_says_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own: dict[str, dict[str, bool]] = {"GPU": {}, "GPU without": {"pdl": False}}
    monkeypatch.setattr(launch, "_read", lambda gpu: own[gpu])

    def options(capability: tuple[int, int], gpu: str = "GPU") -> dict[str, bool]:
        launch.pdl_options.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(launch, "gpu_name", lambda device: gpu)
        return launch.pdl_options(torch.device("cuda", 0))

    assert options((8, 9)) == {"PDL": False}
    assert options((9, 0)) == options((10, 0)) == {"PDL": True, "launch_pdl": True}
    assert options((9, 0), "GPU without") == {"PDL": False}
    launch.pdl_options.cache_clear()
