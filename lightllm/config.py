"""Every option once: name, type, default, help, check. From here come the CLI, the environment, YAML and the docs.

`config_sources.parse` reads them. A value of "auto" or None is resolved by returning a new config
(`dataclasses.replace`), never by mutation.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lightllm.option_spec import MOST_NAME, Option, are_labels, are_model_names, is_collector, is_gateway
from lightllm.option_spec import at_least as _at_least
from lightllm.option_spec import is_zmq_endpoint as _is_zmq_endpoint
from lightllm.option_spec import option as _option
from lightllm.parsers.chat_format import is_reasoning_parser, is_tool_call_parser
from lightllm.parsers.families import FAMILIES
from lightllm.parsers.reasoning import REASONINGS

_FROM_0: dict[str, Any] = {"type": float, "check": lambda v: v >= 0, "expects": "0 or more"}
_ABOVE_0: dict[str, Any] = {"type": float, "check": lambda v: v > 0, "expects": "more than 0"}
_SERVER, _MODEL, _MEMORY, _SCHEDULING = "Server", "Model", "Memory and lengths", "Scheduling"
_GPU, _PARALLEL, _IMAGES, _TESTING = "GPU", "Parallelism", "Images", "Testing"

SECRET_OPTIONS = frozenset({"api_key", "admin_api_key"})
"""Options whose values are shown to nobody."""
MOST_PIXELS = 178_956_970
"""Of an image: Pillow's own limit."""


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """The options of `python -m lightllm.server.api_server`; names as LightLLM's where it has them."""

    # -- server
    host: str = _option("127.0.0.1", "HTTP bind address.", _SERVER)
    port: int = _option(8000, "HTTP port; 0 takes a free one.", _SERVER, type=int,
                        check=lambda v: 0 <= v < 65536, expects="a port number, 0 to 65535")  # fmt: skip
    httpserver_workers: int = _option(
        1, "Http Server processes that share the listening socket.", _SERVER, **_at_least(1))  # fmt: skip
    api_key: list[str] | None = _option(
        None, "Keys that clients may present as `Authorization: Bearer KEY`; every route but health needs one.",
        _SERVER, nargs="+", metavar="KEY")  # fmt: skip
    admin_api_key: list[str] | None = _option(
        None, "Keys without which no client may flush the cache, take profiles or abort other keys' requests; they open all "
        "other routes too.", _SERVER, nargs="+", metavar="KEY")  # fmt: skip
    api_key_file: str | None = _option(
        None, "File with such keys, one a line: KEY or sha256:DIGEST, then `admin` for a key of operators. SIGHUP has it read anew.",
        _SERVER, metavar="FILE")  # fmt: skip
    ssl_certfile: str | None = _option(
        None, "Certificate (PEM, with its chain): the server speaks HTTPS. SIGHUP has it read anew.", _SERVER, metavar="FILE")  # fmt: skip
    ssl_keyfile: str | None = _option(
        None, "Key of the certificate (PEM, without a password); default: it is in the same file.", _SERVER, metavar="FILE")  # fmt: skip
    allowed_hosts: list[str] | None = _option(
        None, "Names (NAME, *.NAME, *) that requests may call the server by while it listens on a loopback address without "
        "--api_key, besides its address and names of the local network.", _SERVER, nargs="+", metavar="NAME",
        check=lambda v: isinstance(v, list) and not any(set(name) & set(":/") for name in v),
        expects="names without scheme and port")  # fmt: skip
    allowed_origins: list[str] | None = _option(None, "CORS: origins that browsers may call from.", _SERVER, nargs="+",
                                                metavar="ORIGIN")  # fmt: skip
    max_body_mb: int = _option(
        16, "Largest request body in MiB; larger ones get 413. Large ones together: four times that in each Http worker.",
        _SERVER, **_at_least(1))  # fmt: skip
    response_store_mb: int = _option(
        64, "MiB of responses that /v1/responses keeps for their callers, all Http workers together; 0: none.", _SERVER,
        **_at_least(0))  # fmt: skip
    response_store_seconds: float = _option(
        3600.0, "Seconds that a response is kept after it was last used.", _SERVER, **_ABOVE_0)  # fmt: skip
    max_connections_per_client: int = _option(
        0, "Connections that one address (of IPv6: its first 64 bits) may have at a time in each Http worker; more are closed at "
        "once. 0: any number, as behind a reverse proxy, whose address all clients have.", _SERVER, **_at_least(0))  # fmt: skip
    request_timeout: float = _option(
        0.0, "Seconds from acceptance until a request is aborted; 0 waits for ever.", _SERVER, **_FROM_0)  # fmt: skip
    overload_status: str = _option(
        "503", "HTTP status of what is refused for load: 503, or 429, which balancers do not take for a server that fails.",
        _SERVER, choices=("503", "429"))  # fmt: skip
    drain_timeout: float = _option(30.0, "Seconds that running requests get after SIGTERM.", _SERVER, **_FROM_0)  # fmt: skip
    startup_timeout: float = _option(1800.0, "Seconds within which every process must be ready.", _SERVER, **_ABOVE_0)  # fmt: skip
    max_restarts: int = _option(
        5, "How often a process of the server that ends is started again within five minutes before the server gives up; 0: the "
        "end of any process ends the server.", _SERVER, **_at_least(0))  # fmt: skip
    health_timeout: float | None = _option(
        None, "Seconds without a token, of a prompt or an answer, after which /health is 503 while requests run; 0: never. "
        "Default: twice as long as a round may take, by --round_timeout.", _SERVER, **_FROM_0)  # fmt: skip
    stream_interval: int = _option(1, "Send streamed tokens in groups of this many; the first one always at once.", _SERVER,
                                   **_at_least(1))  # fmt: skip
    profile_dir: str | None = _option(
        None, "Folder for the traces of /start_profile; without it there are no profiles.", _SERVER, metavar="FOLDER")  # fmt: skip
    sse_keep_alive: float | None = _option(
        None, "Seconds without a token after which a stream carries a comment (`: keep-alive`), so that proxies do not take it "
        "for dead; 0: never. Default: 15, but never in /generate_stream.", _SERVER, **_FROM_0)  # fmt: skip
    use_tgi_api: bool = _option(
        False,
        "/generate and /generate_stream speak as text-generation-inference does, as POST / always does.",
        _SERVER,
    )
    timeout_keep_alive: int = _option(
        130, "Seconds an idle connection is kept. More than clients and proxies keep theirs, lest one is closed just as a "
        "request is sent on it.", _SERVER, **_at_least(1))  # fmt: skip
    disable_page: bool = _option(False, "No page at / and no /docs: the API alone.", _SERVER)
    log_stats_interval: int = _option(
        10, "Seconds between statistics lines in the log.", _SERVER, **_at_least(1))  # fmt: skip
    disable_log_stats: bool = _option(False, "No statistics lines.", _SERVER)
    metric_gateway: str | None = _option(
        None, "Prometheus push gateway (`host:port`, or a URL) that gets all metrics.", _SERVER, metavar="URL", check=is_gateway,
        expects="HOST:PORT, http://HOST:PORT or https://HOST:PORT, without a user")  # fmt: skip
    job_name: str = _option("lightllm", "Their `job` there.", _SERVER)
    grouping_key: list[str] | None = _option(
        None, "More labels there. Servers that share a gateway need different ones, e.g. `instance=gpu7`.", _SERVER, nargs="+",
        extends=True, metavar="LABEL=VALUE", check=are_labels, expects="LABEL=VALUE, and another label than job")  # fmt: skip
    push_interval: float = _option(10.0, "Seconds between two pushes.", _SERVER, **_ABOVE_0)
    enable_monitor_auth: bool = _option(
        False,
        "The gateway wants a name and a password: those in the environment variables USERNAME and PASSWORD.",
        _SERVER,
    )
    request_log: str | None = _option(
        None, "File that gets a line of JSON for each generation request that has ended; -: standard output.", _SERVER, metavar="FILE",
    )  # fmt: skip
    request_log_prompts: bool = _option(False, "With prompts and answers in it.", _SERVER)
    otlp_traces_endpoint: str | None = _option(
        None, "OpenTelemetry collector that gets a span of each request (OTLP over HTTP; extra `otel`).", _SERVER, metavar="URL",
        check=is_collector, expects="http://HOST:PORT or https://HOST:PORT, with a path if it is not /v1/traces",
    )  # fmt: skip
    log_level: str = _option(
        "info", "Verbosity of the log.", _SERVER, choices=("debug", "info", "warning", "error"))  # fmt: skip

    # -- model
    model_dir: str | None = _option(
        None, "Model folder or Hugging Face hub id; without it the embedded demo model.", _MODEL)  # fmt: skip
    model_name: list[str] | None = _option(
        None, "Names that clients use (/v1/models; the first one: /get_model_name); default: the hub id, or the last part of the "
        "folder.", _MODEL, nargs="+", metavar="NAME", check=are_model_names, expects=f"names of 1 to {MOST_NAME} characters",
    )  # fmt: skip
    strict_model_name: bool = _option(
        False, "Requests that name another model get 404; otherwise they mean the one there is.", _MODEL)  # fmt: skip
    model_owner: str = _option("lightllm", "The model's `owned_by` in /v1/models.", _MODEL)
    tokenizer_mode: str = _option("auto", "Kept for compatibility: all modes use the fast tokenizer where there is one.",
                                  _MODEL, choices=("fast", "slow", "auto"))  # fmt: skip
    trust_remote_code: bool = _option(
        False, "Allow tokenizer code from the model folder (never model code).", _MODEL)  # fmt: skip
    chat_template: str | None = _option(
        None, "Jinja file used instead of the tokenizer's chat template.", _MODEL)  # fmt: skip
    task: str = _option(
        "auto", "What the model is for: generate: texts; embed: vectors of texts; classify: labels; score: a reranker that answers "
        "yes or no. auto: what the files of its folder say.", _MODEL, choices=("auto", "generate", "embed", "classify", "score"))  # fmt: skip
    use_reward_model: bool = _option(
        False, "The model is a reward model: POST /get_score, and no texts.", _MODEL)  # fmt: skip
    tool_call_parser: str = _option(
        "auto",
        "Form in which the model writes tool calls ([names](tools_and_reasoning.md#families)): auto finds it in the chat template and "
        "the vocabulary; none: calls stay text.",
        _MODEL, check=is_tool_call_parser, expects="auto, none or one of " + ", ".join(family.name for family in FAMILIES),
    )  # fmt: skip
    reasoning_parser: str = _option(
        "auto",
        "Form in which the model marks its reasoning ([names](tools_and_reasoning.md#reasoning)): auto finds it likewise; none: it "
        "stays part of the text.",
        _MODEL, check=is_reasoning_parser, expects="auto, none or one of " + ", ".join(one.name for one in REASONINGS),
    )  # fmt: skip
    output_constraint_mode: str = _option(
        "llguidance",
        "What makes outputs obey regular_constraint, guided_grammar, guided_json and response_format; LightLLM's names xgrammar "
        "and outlines mean the same here. none: such requests are refused, which saves 50 MB for 128,000 tokens.",
        _MODEL, choices=("llguidance", "xgrammar", "outlines", "none"),
    )  # fmt: skip
    load_way: str = _option("HF", "HF: read the checkpoint; dummy: random weights in the real shapes.", _MODEL,
                            choices=("HF", "dummy"))  # fmt: skip
    data_type: str | None = _option(
        None, "Weights and KV memory: bf16, fp16 or fp32; default: as config.json says.", _MODEL,
        choices=("bf16", "bfloat16", "fp16", "float16", "fp32", "float32"),
    )  # fmt: skip
    quant_type: str = _option("none", "Weights of a dense checkpoint in few bits, quantised while they are loaded: none or one of "
        "these [names](quantization.md#quantised-while-loading).", _MODEL, metavar="TYPE")  # fmt: skip
    quant_cfg: str | None = _option(None, "YAML file that gives some modules or layers another one.", _MODEL, metavar="FILE")  # fmt: skip
    device: str = _option("auto", "Where the model runs: auto takes a GPU if there is one.", _MODEL,
                          choices=("auto", "cuda", "cpu"))  # fmt: skip
    eos_id: list[int] | None = _option(None, "EOS token ids; default: generation_config.json, then config.json.", _MODEL,
                                       type=int, nargs="+")  # fmt: skip
    cpu_threads: int = _option(
        0, "Compute threads of each rank on a CPU; 0: all physical cores, divided among the ranks.", _MODEL, **_at_least(0),
    )  # fmt: skip

    # -- memory and lengths
    max_total_token_num: int | None = _option(
        None, "KV slots (tokens); default: measured from free memory with --mem_fraction.", _MEMORY, **_at_least(2))  # fmt: skip
    mem_fraction: float | None = _option(
        None, "Share of device memory to use when measuring; default 0.9 of a GPU, 0.4 of a CPU's available memory.",
        _MEMORY, type=float, aliases=("--mem_faction",), check=lambda v: 0 < v < 1, expects="between 0 and 1")  # fmt: skip
    llm_kv_type: str = _option(
        "None", "What KV memory keeps of keys and values: int8kv 8 bits each, with a scale for each token and head, so that nearly "
        "twice as many tokens fit; fp8kv likewise, as e4m3; int4kv 4 bits, with a scale for every 32 numbers ([KV memory](quantization.md#kv-memory)); None: the numbers as the model computes them.",
        _MEMORY, choices=("None", "int8kv", "fp8kv", "int4kv"))  # fmt: skip
    max_req_total_len: int | None = _option(
        None, "Longest prompt + output in tokens; default: the model's context length, at most 16384.", _MEMORY,
        **_at_least(2))  # fmt: skip
    max_req_input_len: int | None = _option(
        None, "Longest prompt in tokens; default: whatever --max_req_total_len leaves room for.", _MEMORY, **_at_least(1))  # fmt: skip
    default_max_tokens: int = _option(
        4096, "Cap on the output of a chat that names no limit.", _MEMORY, **_at_least(1))  # fmt: skip
    default_max_new_tokens: int | None = _option(
        None, "Cap on the output of a /generate that names no limit (LightLLM before 1.2: 16); default: what fits.", _MEMORY,
        **_at_least(1))  # fmt: skip
    long_truncation_mode: str | None = _option(
        None, "Too long prompts: default an error; head keeps the end; center removes the middle.", _MEMORY,
        choices=("head", "center"))  # fmt: skip

    # -- scheduling
    schedule_policy: str = _option(
        "past_future",
        "How long outputs are expected to be when requests are admitted. conservative: as long as max_new_tokens says; "
        "aggressive: what is held now counts; past_future: as long as recent outputs were. With the last two, requests "
        "may pause when memory is short; they go on later as if they had not.",
        _SCHEDULING, choices=("conservative", "aggressive", "past_future"))  # fmt: skip
    round_policy: str = _option(
        "mixed",
        "Which rounds prefill. mixed: chunks of prompts beside the streams that decode, which never stall; prefill_first: "
        "prompts in rounds of their own, before the streams go on; decode_first: the same, but with "
        "--router_max_wait_tokens rounds for the streams in between.",
        _SCHEDULING, choices=("mixed", "prefill_first", "decode_first"))  # fmt: skip
    router_max_wait_tokens: int = _option(
        6, "With --round_policy decode_first: rounds of decode between two rounds of prefill; with "
        "--disable_aggressive_schedule: between two rounds in which requests enter.", _SCHEDULING, **_at_least(0))  # fmt: skip
    router_token_ratio: float = _option(
        0.0,
        "Above 0: LightLLM's own rule instead of --schedule_policy. While requests need less than this share of the memory, "
        "outputs are expected to have at most --router_max_new_token_len tokens; from there on as many as max_new_tokens "
        "says.", _SCHEDULING, type=float, check=lambda v: 0 <= v <= 1, expects="between 0 and 1")  # fmt: skip
    router_max_new_token_len: int = _option(
        1024, "With --router_token_ratio: tokens of an output, as expected while there is room.", _SCHEDULING,
        **_at_least(1))  # fmt: skip
    disable_aggressive_schedule: bool = _option(
        False, "While streams decode, requests enter only every --router_max_wait_tokens rounds.", _SCHEDULING
    )
    max_overtakes: int = _option(
        8, "How many requests may enter before a waiting one that does not fit yet, if they do; 0: strictly first come, "
        "first served. A request that has paused is never passed.", _SCHEDULING, **_at_least(0))  # fmt: skip
    ttft_slo: float = _option(
        0.0, "Seconds to the first token: a request that is predicted to wait longer is refused at once, with 503 and "
        "Retry-After. 0: none is.", _SCHEDULING, **_FROM_0)  # fmt: skip
    tpot_slo: float = _option(
        0.0,
        "Seconds from one token of a stream to the next: prefill chunks shrink, and requests wait, so that rounds take no "
        "longer. 0: no such limit.", _SCHEDULING, **_FROM_0)  # fmt: skip
    running_max_req_size: int = _option(
        1000, "Requests that may run at once (rows).", _SCHEDULING, **_at_least(1)
    )
    max_waiting_requests: int = _option(
        4096, "Requests that may wait; beyond it 503 with Retry-After.", _SCHEDULING, **_at_least(1)
    )
    max_waiting_seconds: float = _option(
        10.0, "Seconds that a request may wait for its turn: one that is predicted to wait longer is refused at once, with 503 and "
        "Retry-After, unless fewer than 64 are ahead of it. 0: none is.", _SCHEDULING, **_FROM_0)  # fmt: skip
    batch_max_tokens: int | None = _option(
        None, "Tokens computed in one round; default: on a GPU the chunk size plus a quarter (at least 256), on a CPU 512.",
        _SCHEDULING, **_at_least(1))  # fmt: skip
    chunked_prefill_size: int | None = _option(
        None, "Tokens of one prefill chunk; default 4096 on a GPU, 512 on a CPU.", _SCHEDULING, **_at_least(1)
    )
    disable_chunked_prefill: bool = _option(False, "Prefill whole prompts in one round.", _SCHEDULING)
    disable_dynamic_prompt_cache: bool = _option(
        False, "Compute every prompt anew: no prefix cache, and no prompt shared by the `n` answers to it.", _SCHEDULING)  # fmt: skip

    kv_events: str | None = _option(
        None, "Publishes what enters and leaves the prefix cache, for controllers with kv_aware dispatch.", _SCHEDULING,
        metavar="tcp://HOST:PORT", check=_is_zmq_endpoint, expects="tcp://HOST:PORT")  # fmt: skip
    kv_events_token_ids: bool = _option(False, "With the prompts' token ids, as vLLM does.", _SCHEDULING)

    attention_backend: str = _option(
        "triton",
        "What computes attention: triton, flashinfer or fa3 (packages that must be installed); two names, separated by a "
        "comma, for prefill and for decode.", _GPU, metavar="PREFILL[,DECODE]")  # fmt: skip

    # -- decode graphs
    disable_cudagraph: bool = _option(
        False,
        "Launch every kernel of a decode round by itself, instead of replaying a captured graph; on a CPU likewise.",
        _GPU,
    )
    graph_max_batch_size: int = _option(
        256, "Largest decode batch that gets a graph; larger ones run without.", _GPU, **_at_least(1)
    )
    graph_split_batch_size: int = _option(
        32, "Every batch size up to this one gets a graph of its own.", _GPU, **_at_least(1)
    )
    graph_grow_step_size: int = _option(
        16, "Above that, distance between the batch sizes that get one.", _GPU, **_at_least(1)
    )

    enable_nvtx: bool = _option(
        False, "Name the parts of every round in the traces of profilers (NVTX ranges).", _GPU
    )

    # -- parallelism
    tp: int = _option(1, "Tensor parallel ranks.", _PARALLEL, **_at_least(1))
    nnodes: int = _option(1, "Machines (nodes) that share the ranks evenly.", _PARALLEL, **_at_least(1))
    node_rank: int = _option(0, "Number of this machine; node 0 serves HTTP.", _PARALLEL, **_at_least(0))
    cluster_secret_file: str | None = _option(
        None, "File with the secret that the nodes share; else the environment variable LIGHTLLM_CLUSTER_SECRET.", _PARALLEL)  # fmt: skip
    nodes_timeout: float = _option(
        300.0, "Seconds that the nodes wait for one that is not there: at the start, and when it is lost.", _PARALLEL, **_ABOVE_0)  # fmt: skip
    round_timeout: float = _option(
        60.0,
        "Seconds that a round may take (with several ranks: that a rank waits for the others within it). A process that takes "
        "longer, or does not run for so long, counts as hanging: it is ended and started again.",
        _PARALLEL, **_ABOVE_0)  # fmt: skip
    nccl_host: str = _option(
        "127.0.0.1", "Address of node 0, where the other nodes find it; not used by one node.", _PARALLEL
    )
    nccl_port: int = _option(28765, "Port of torch's store on node 0; the next port is the Router's for the other nodes.",
                             _PARALLEL, type=int, check=lambda v: 0 < v < 65535, expects="a port number, 1 to 65534")  # fmt: skip

    # -- images
    allowed_media_domains: list[str] | None = _option(
        None, "Hosts, with all below them, that images are fetched from; an address counts even if it is not public. Default: "
        "all with public addresses.", _IMAGES, nargs="+", metavar="HOST",
        check=lambda v: isinstance(v, list) and not any("/" in host or "*" in host for host in v),
        expects="host names or addresses, without scheme, port and *")  # fmt: skip
    allowed_local_media_path: str | None = _option(
        None, "Folder whose files clients may send as file:// URLs; without it none.", _IMAGES, metavar="FOLDER")  # fmt: skip
    max_image_mb: int = _option(32, "Largest encoded image in MiB.", _IMAGES, **_at_least(1))
    max_image_pixels: int = _option(
        50_000_000, "Largest image in pixels, width x height.", _IMAGES, type=int,
        check=lambda v: 0 < v <= MOST_PIXELS, expects=f"1 to {MOST_PIXELS}")  # fmt: skip
    max_images: int = _option(64, "Images of one request.", _IMAGES, **_at_least(1))
    max_images_mb: int = _option(
        128, "Encoded images of one request together in MiB.", _IMAGES, **_at_least(1)
    )
    image_fetch_timeout: float = _option(
        10.0, "Seconds within which an image must be downloaded.", _IMAGES, type=float,
        check=lambda v: v > 0, expects="more than 0")  # fmt: skip
    enable_multimodal: bool = _option(
        False, "Kept for compatibility: a vision-language checkpoint is recognised by itself.", _IMAGES
    )
    disable_vision: bool = _option(
        False, "Serve a vision-language model for texts alone: no vision encoder, no image cache.", _IMAGES
    )
    cache_capacity: int = _option(
        200, "Images that the image cache holds, those in use included.", _IMAGES, **_at_least(1)
    )
    cache_capacity_bytes: int | None = _option(
        None, "Bytes of shared memory for the images and their embeddings; default: half of what is free, at most 8 GiB.",
        _IMAGES, **_at_least(1))  # fmt: skip
    image_wait: float = _option(
        10.0, "Seconds that a request waits while all of the image cache is in use; then 503 with Retry-After.", _IMAGES,
        **_FROM_0)  # fmt: skip
    visual_infer_batch_size: int | None = _option(
        None, "Images, of any requests, that a vision encoder takes at once; default 4 on a GPU, 1 on a CPU.", _IMAGES,
        **_at_least(1))  # fmt: skip
    visual_dp: int = _option(
        1, "Visual Servers, each with an encoder of its own; an image is encoded by one of them.", _IMAGES, **_at_least(1))  # fmt: skip
    visual_tp: int = _option(1, "Tensor parallel ranks of each encoder.", _IMAGES, **_at_least(1))
    visual_gpu_ids: list[int] | None = _option(
        None, "GPUs of the encoders, --visual_tp for each of --visual_dp, in this order; default: 0 and following, which the "
        "ranks of the language model use too.", _IMAGES, type=int, nargs="+",
        check=lambda v: isinstance(v, list) and all(number >= 0 for number in v), expects="numbers of GPUs, from 0 on")  # fmt: skip

    # -- testing
    check_rounds: bool = _option(
        False, "Compare a checksum of every round, and of the tokens before it, across the ranks.", _TESTING
    )
    mock_backend: str | None = _option(
        None, "Serve scripted tokens instead of a model: SPEC is `key=value,...` (see docs/mock_backend.md).", _TESTING,
        nargs="?", const="", metavar="SPEC")  # fmt: skip

    @property
    def pools(self) -> bool:
        """The model makes vectors, and no texts; --task is resolved."""
        return self.serves != "generate"

    @property
    def serves(self) -> str:
        """ "generate", "reward", or the task of a model for vectors; --task is resolved."""
        if self.use_reward_model:
            return "reward"
        return "generate" if self.task == "auto" else self.task

    @property
    def node_ranks(self) -> range:
        """The tensor parallel ranks of this machine."""
        count = self.tp // self.nnodes
        return range(self.node_rank * count, (self.node_rank + 1) * count)

    def to_json(self) -> bytes:
        """The config as it travels to child processes."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ServerConfig":
        return cls(**json.loads(data))


def options() -> list[tuple[dataclasses.Field[Any], Option]]:
    """All options in their order of declaration."""
    return [(field, field.metadata["option"]) for field in dataclasses.fields(ServerConfig)]
