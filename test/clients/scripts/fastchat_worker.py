"""A worker that is FastChat's own but for its model, which says "5": fastchat_worker.py CONTROLLER PORT"""

import json
import sys

import uvicorn
from fastchat.serve.base_model_worker import BaseModelWorker, app


class Five(BaseModelWorker):
    def __init__(self, controller: str, address: str) -> None:
        super().__init__(controller, address, "five", "five", ["theirs"], 4, conv_template="raw")
        self.context_len = 512
        self.init_heart_beat()

    def count_token(self, params):
        return {"count": len(params["prompt"].split()), "error_code": 0}

    def generate_stream_gate(self, params):
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        for finish in (None, "stop"):
            chunk = {"text": "5", "error_code": 0, "usage": usage, "finish_reason": finish}
            yield json.dumps(chunk).encode() + b"\0"

    def generate_gate(self, params):
        *_, last = self.generate_stream_gate(params)
        return json.loads(last[:-1])


if __name__ == "__main__":
    controller, port = sys.argv[1:]
    Five(controller, f"http://127.0.0.1:{port}")
    uvicorn.run(app, host="127.0.0.1", port=int(port))
