"""`python -m lightllm.detokenizer`: started by the Supervisor."""

from lightllm.detokenizer.process import main
from lightllm.ipc.child import run_child

run_child("detokenizer", main)
