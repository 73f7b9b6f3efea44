"""How kernels are launched: what the environment and the GPU say of programmatic dependent launch."""

from types import SimpleNamespace

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


class Compiled:
    """As Triton's compiled kernels are called."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.launches: list[tuple[object, ...]] = []

    def run(self, *arguments: object) -> None:
        self.launches.append(arguments)


def test_what_was_launched_before_is_launched_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first launch of a variant goes through Triton: `test_kernel_variants.py` compares the choices with its own."""
    first: list[tuple[object, ...]] = []
    variants = {"a": Compiled(), "b": Compiled()}

    class Kernel:
        device_caches = {3: (lambda x, size: ({"x": x, "size": size}, [("*fp32", size)], {"num_warps": 4}),)}

        def __getitem__(self, grid):
            return lambda x, size: (first.append((grid, x, size)), variants[size])[1]

    monkeypatch.setattr(launch, "JITFunction", Kernel)
    active = SimpleNamespace(get_current_device=lambda: 3, get_current_stream=lambda device: 7)
    monkeypatch.setattr(launch, "driver", SimpleNamespace(active=active))
    kernel = Kernel()
    for x, size in (("x1", "a"), ("x2", "a"), ("x3", "b"), ("x4", "a")):
        launch.launch(kernel, (5, 2), x, size=size)
    assert first == [((5, 2), "x1", "a"), ((5, 2), "x3", "b")]
    head = (5, 2, 1, 7, "function", "metadata", None, None, None)
    assert variants["a"].launches == [(*head, "x2", "a"), (*head, "x4", "a")]
    assert variants["b"].launches == []
