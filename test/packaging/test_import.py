"""What `import lightllm` costs, and that nothing depends on assertions being on."""

import subprocess
import sys


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_import_loads_no_heavy_library() -> None:
    heavy = (
        "torch",
        "transformers",
        "tokenizers",
        "numpy",
        "msgspec",
        "pydantic",
        "fastapi",
        "zmq",
        "asyncio",
    )
    code = f"import lightllm, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run("-c", code).stdout == "[]\n"


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    assert "has no attribute 'nothing'" in run("-c", "import lightllm; lightllm.nothing").stderr


def test_input_is_checked_without_assertions() -> None:
    code = "from lightllm.sampling_params import SamplingParams; SamplingParams(temperature=-1.0).verify()"
    assert "InvalidParameter: temperature must" in run("-O", "-c", code).stderr
    code = "from lightllm.config_sources import parse; parse(['--port', '70000'], {})"
    assert "InvalidOption: --port must be a port number" in run("-O", "-c", code).stderr
