"""What a worker of the model answers: POSTs whose body names it, and questions about the model itself."""

from __future__ import annotations

FASTCHAT_PATHS = frozenset(
    {
        "/worker_generate_stream", "/worker_generate", "/worker_get_embeddings", "/count_token", "/worker_get_conv_template",
        "/model_details",
    }
)  # fmt: skip
"""What FastChat's workers answer themselves, whatever server is behind them."""
SERVER_PATHS = frozenset(
    {
        "/", "/generate", "/generate_stream", "/get_score", "/tokens", "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize",
        "/v1/chat/completions/render",
        "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/responses/input_tokens", "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings", "/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score", "/v1/classify", "/classify",
        "/api/generate", "/api/chat", "/api/show", "/api/embed", "/api/embeddings",
    }
)  # fmt: skip
GET_PATHS = frozenset(
    {"/get_model_name", "/info", "/get_server_info", "/get_weight_version", "/tokenizer_info"}
)
"""What servers say about their model."""
RESPONSES = "/v1/responses"
FOLLOWING_PATHS = frozenset({RESPONSES, "/v1/responses/input_tokens"})
"""May follow a response that one worker holds."""
RESPONSE_PATHS = frozenset(
    {"/v1/responses/{id}", "/v1/responses/{id}/input_items", "/v1/responses/{id}/cancel"}
)
"""Of a response that one worker holds."""
TOLD_PATHS = frozenset({"/abort_request", "/flush_cache"})
"""What all workers are told."""
WORKER_PATHS = SERVER_PATHS | FASTCHAT_PATHS
RESUMABLE_PATHS = frozenset({"/generate_stream", "/v1/completions", "/v1/chat/completions", "/v1/messages"})
"""Streams that our servers can go on with where another one broke off."""
