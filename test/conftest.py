"""Shared by all tests: `test/` is on the path, so that `from support import ...` works from every folder.

Triton asks once, when it is imported, whether kernels are to be interpreted, and torch's libraries ask which instructions
they may use (`LIGHTLLM_CPU_KIND`); so that is said here, before any test.
"""

import os
import sys
from pathlib import Path

import hypothesis
import pytest

from lightllm.ops.cpu_kind import library_variables

os.environ.update(library_variables())
# Servers of tests have homes and folders of temporary files of their own; kernels are compiled once for all of them.
if not os.environ.get("LIGHTLLM_KERNEL_CACHE"):
    kernels = Path("~/.cache/lightllm/cpu-kernels").expanduser()
    if os.access(next(folder for folder in (kernels, *kernels.parents) if folder.exists()), os.W_OK):
        os.environ["LIGHTLLM_KERNEL_CACHE"] = str(kernels)
# Each worker of the test run has one core; OpenMP's threads would spin on each other's.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine makes an example slow, and a slow example is no fault.
hypothesis.settings.register_profile("lightllm", deadline=None)
hypothesis.settings.register_profile("lightllm-short", deadline=None, derandomize=True)

sys.path.insert(0, str(Path(__file__).parent))

LONG_FILES = (
    "server/test_two_nodes.py",
    "server/test_tensor_parallel.py",
    "server/test_supervisor_lifecycle.py",
    "server/test_supervisor_restarts.py",
    "models/test_architectures.py",
    "ops/triton/test_compile.py",
    "end_to_end/test_constrained_output.py",
    "server/test_surroundings.py",
    "test_llm.py",
    "server/test_mock_server.py",
    "server/test_restarts.py",
    "server/test_node_restarts.py",
    "server/test_stalled_process.py",
    "server/test_images.py",
    "backend/test_gpu_path.py",
    "ops/triton/test_decode_attention.py",
    "ops/triton/test_sample.py",
    "server/test_image_cache.py",
    "benchmark/test_gpu_report.py",
    "models/test_gpu_code.py",
    "weights/test_loading_ranks.py",
    "server/test_memory_limit.py",
    "ops/triton/test_moe.py",
    "ops/triton/test_mla_attention.py",
    "simulate/test_simulator.py",
    "api/test_parameters_in_batches.py",
    "end_to_end/test_constraint_errors.py",
    "router/test_scheduler_properties.py",
    "soak/test_soak.py",
    "backend/test_images.py",
    "models/vision/test_image_embeddings.py",
    "backend/test_same_tokens.py",
    "server/test_broken_model_folder.py",
    "ops/test_attention_backends.py",
    "ops/triton/test_rotary.py",
    "test_adding_a_parameter.py",
    "ops/triton/test_prefill_attention.py",
    "end_to_end/test_without_constraints.py",
    "simulate/test_simulate_cli.py",
    "simulate/test_compare.py",
)
"""Files that take longest, longest first: workers take whole files in this order, so that none is left with a long one
at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """The short forms take the same examples each time: a rare one that fails is found by whoever works on it, not by those who only
    want to know whether their own change is sound."""
    short = config.option.markexpr == "not slow"
    hypothesis.settings.load_profile("lightllm-short" if short else "lightllm")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        place = {Path(__file__).parent / name: number for number, name in enumerate(LONG_FILES)}
        items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's own, with a short name: Unix sockets below it may have 107 characters, and workers add some."""
    return tmp_path_factory.mktemp("t")
