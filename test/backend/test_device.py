"""What of a GPU's device can be seen without one."""

import threading

import torch

from lightllm.backend.device import _CudaArrival


def test_a_thread_that_waits_for_results_is_on_their_gpu_first(monkeypatch):
    """A new thread is on the first GPU, on which it would make a context of its own, whatever GPU the results are on."""
    calls = []

    class Event:
        def synchronize(self):
            calls.append((threading.current_thread().name, "waits"))

    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: calls.append((threading.current_thread().name, device))
    )
    gpu = torch.device("cuda", 1)
    watch = threading.Thread(target=_CudaArrival([], Event(), gpu).wait, name="watch")
    watch.start()
    watch.join()
    assert calls == [("watch", gpu), ("watch", "waits")]
