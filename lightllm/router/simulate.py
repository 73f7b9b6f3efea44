"""`python -m lightllm.router.simulate`: starts `lightllm.simulate`, the simulator, by its old name."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    runpy.run_module("lightllm.simulate", run_name="__main__")
