"""The names of all metrics. Names that LightLLM already has are kept, so that existing dashboards go on working."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Metric:
    """One Prometheus metric. A counter is exposed with the suffix `_total`, a histogram with `_bucket`, `_sum`, `_count`."""

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, ascending; +Inf is implied."""
    label: str = ""
    """Of a counter that is kept for each of `values` by itself."""
    values: tuple[str, ...] = ()


_SECONDS = tuple(round(0.001 * 1.5**k, 6) for k in range(1, 36))
_TOKENS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
_SHORT = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

# -- counted by the Http Server workers and summed over them
REQUEST_COUNT = Metric("lightllm_request_count", "Generation requests that passed validation.", "counter")
REQUEST_SUCCESS = Metric("lightllm_request_success", "Generation requests answered to their end.", "counter")
REQUEST_FAILURE = Metric(
    "lightllm_request_failure", "Generation requests answered with an error or cut off.", "counter"
)
REQUEST_REFUSED = Metric("lightllm_request_refused", "Generation requests refused for overload.", "counter")
REQUEST_DISCONNECTED = Metric(
    "lightllm_request_disconnected", "Generation requests whose client left before the last byte.", "counter"
)
ANSWERS_ENDED = Metric(
    "lightllm_request_finished", "Answers to generation requests, by why they ended.", "counter",
    label="finish_reason", values=("stop", "length", "abort", "timeout", "error"),
)  # fmt: skip
QUEUE_SECONDS = Metric(
    "lightllm_request_queue_duration",
    "Seconds from arrival until the request began to run.",
    "histogram",
    _SECONDS,
)
PREFILL_SECONDS = Metric(
    "lightllm_request_prefill_duration", "Seconds from when it ran to the first token.", "histogram", _SECONDS
)
DECODE_SECONDS = Metric(
    "lightllm_request_decode_duration", "Seconds from the first to the last token.", "histogram", _SECONDS
)
RUN_SECONDS = Metric(
    "lightllm_request_run_duration", "Seconds from when it ran to the last token.", "histogram", _SECONDS
)
FIRST_TOKEN_SECONDS = Metric(
    "lightllm_request_first_token_duration", "Seconds from arrival to the first token (TTFT).",
    "histogram", _SECONDS,
)  # fmt: skip
MEAN_TOKEN_SECONDS = Metric(
    "lightllm_request_mean_time_per_token_duration", "Mean seconds per output token after the first (TPOT).",
    "histogram", _SECONDS,
)  # fmt: skip
INTER_TOKEN_SECONDS = Metric(
    "lightllm_request_inter_token_duration", "Seconds between two rounds with tokens of one request (ITL).",
    "histogram", _SHORT,
)  # fmt: skip
INFERENCE_SECONDS = Metric(
    "lightllm_request_inference_duration", "Seconds from arrival to the last token.", "histogram", _SECONDS
)
INPUT_LENGTH = Metric("lightllm_request_input_length", "Prompt tokens of a request.", "histogram", _TOKENS)
GENERATED_TOKENS = Metric(
    "lightllm_request_generated_tokens", "Output tokens of a request, all its choices.", "histogram", _TOKENS
)
CACHED_TOKENS = Metric(
    "lightllm_cache_length", "Prompt tokens that the prefix cache held.", "histogram", _TOKENS
)
CACHED_RATIO = Metric(
    "lightllm_cache_ratio", "The part of a request's prompt tokens that the prefix cache held.", "histogram",
    tuple(n / 10 for n in range(11)),
)  # fmt: skip
MAX_NEW_TOKENS = Metric(
    "lightllm_request_max_new_tokens", "max_new_tokens of a request.", "histogram", _TOKENS
)
IMAGE_COUNT = Metric("lightllm_image_count", "Images of generation requests.", "counter")
IMAGE_ENCODES = Metric(
    "lightllm_image_encodes",
    "Images that were encoded: content that the image cache did not hold.",
    "counter",
)
REQUEST_LOG_LOST = Metric(
    "lightllm_request_log_lost",
    "Lines of --request_log that were dropped: they could not be written in time.",
    "counter",
)
LOOP_LAG_SECONDS = Metric(
    "lightllm_event_loop_lag", "Seconds by which the Http Server's event loop runs late.", "histogram", _SHORT
)
LOOP_LAG_LATEST = Metric(
    "lightllm_event_loop_lag_latest", "Latest event-loop lag in seconds, the worst worker's.", "gauge"
)

HTTP_METRICS = (
    REQUEST_COUNT, REQUEST_SUCCESS, REQUEST_FAILURE, REQUEST_REFUSED, REQUEST_DISCONNECTED, ANSWERS_ENDED, QUEUE_SECONDS,
    PREFILL_SECONDS, DECODE_SECONDS, RUN_SECONDS, REQUEST_LOG_LOST, FIRST_TOKEN_SECONDS, MEAN_TOKEN_SECONDS, INTER_TOKEN_SECONDS, INFERENCE_SECONDS, INPUT_LENGTH, GENERATED_TOKENS, CACHED_TOKENS,
    CACHED_RATIO, MAX_NEW_TOKENS, IMAGE_COUNT, IMAGE_ENCODES, LOOP_LAG_SECONDS, LOOP_LAG_LATEST,
)  # fmt: skip

# -- read from the Router's snapshot when /metrics is asked for: (metric, field of ipc.snapshot.Snapshot)
SNAPSHOT_METRICS = (
    (Metric("lightllm_queue_size", "Requests that wait.", "gauge"), "waiting"),
    (Metric("lightllm_batch_current_size", "Requests that run.", "gauge"), "running"),
    (Metric("lightllm_batch_pause_size", "Requests that are paused.", "gauge"), "paused"),
    (Metric("lightllm_batch_current_max_tokens", "Predicted peak of slots for what runs now.", "gauge"),
     "estimated_peak"),
    (Metric("lightllm_slots_total", "KV slots.", "gauge"), "slots_total"),
    (Metric("lightllm_slots_used", "KV slots owned by requests.", "gauge"), "slots_used"),
    (Metric("lightllm_slots_cached", "KV slots that only the prefix cache holds.", "gauge"), "slots_cached"),
    (Metric("lightllm_rounds", "Model rounds computed.", "counter"), "rounds"),
    (Metric("lightllm_prompt_tokens", "Prompt tokens computed.", "counter"), "prompt_tokens"),
    (Metric("lightllm_output_tokens", "Tokens generated.", "counter"), "output_tokens"),
    (Metric("lightllm_router_finished", "Requests that the Router finished.", "counter"), "finished"),
    (Metric("lightllm_router_refused", "Requests that the Router refused.", "counter"), "refused"),
    (Metric("lightllm_router_restored", "Requests that went on after a restart of the Router.", "counter"),
     "restored"),
    (Metric("lightllm_router_aborted", "Requests that were aborted.", "counter"), "aborted"),
    (Metric("lightllm_router_pauses", "How often requests had to pause because memory was short.", "counter"), "pauses"),
    (Metric("lightllm_router_not_finite", "Requests that ended because the model's output was NaN or infinite.",
            "counter"), "not_finite"),
    (Metric("lightllm_router_row_failures", "Requests that ended because the backend could not prepare them.",
            "counter"), "row_failures"),
)  # fmt: skip

# -- of the server as a whole
OUTPUT_RATE = Metric(
    "lightllm_output_tokens_per_second",
    "Tokens generated in the last second, as /metrics/history has it.",
    "gauge",
)
HEALTHY = Metric("lightllm_ready", "1 while the model serves: the server is healthy.", "gauge")
START_TIME = Metric(
    "process_start_time_seconds",
    "Unix time at which the server started: counters begin with 0 there.",
    "gauge",
)
