"""Many servers: a controller that knows its workers, chooses one for each request and passes the answer on; and the workers.

client ── HTTP ──> controller ── HTTP ──> worker: a server of ours, a vLLM server, any OpenAI-compatible API
                     │    ^
                     │    └── register, heartbeat (load, models) ── worker
registry   who is there, in which state, with how much to do
dispatch/  which of them takes a request: pure objects, driven by the controller and by the simulator
proxy      sends, retries, passes the answer on, gives the load back
"""
