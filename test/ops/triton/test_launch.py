"""How kernels are launched: what the environment and the GPU say of programmatic dependent launch."""

import pytest
import torch
import triton

from lightllm.ops.triton import launch

PDL = {"PDL": True, "launch_pdl": True}


@pytest.mark.parametrize(
    ("capability", "value", "expected"),
    [((9, 0), None, PDL), ((9, 0), "1", PDL), ((9, 0), "0", {"PDL": False}), ((8, 9), None, {"PDL": False})],
)
def test_an_environment_variable_turns_dependent_launch_off(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], value: str | None, expected: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Pretended")
    if value is None:
        monkeypatch.delenv(launch.PDL_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(launch.PDL_VARIABLE, value)
    assert launch.pdl_options.__wrapped__(torch.device("cuda", 0)) == expected


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7, 8, 9, 127, 128, 129, 128256])
def test_sizes_are_those_of_triton(number: int) -> None:
    assert launch.next_power_of_2(number) == (triton.next_power_of_2(number) if number else 1)
    assert [launch.cdiv(number, size) for size in (1, 3, 128)] == [
        triton.cdiv(number, size) for size in (1, 3, 128)
    ]
