"""What each route of the controller needs: one table, which the application obeys and a test holds beside all routes that there are.

open        nothing
client      a key, where there are keys for clients
operator    an admin key; where there are none, what a client needs
worker      a signature with the cluster's secret; where there is none, what an operator needs
"""

from __future__ import annotations

import enum

from lightllm.cluster.paths import GET_PATHS, RESPONSE_PATHS, TOLD_PATHS, WORKER_PATHS
from lightllm.http.auth import OPEN_PATHS


class Access(enum.Enum):
    OPEN = "open"
    CLIENT = "client"
    OPERATOR = "operator"
    WORKER = "worker"


REGISTRATION_PATHS = frozenset({"/register_worker", "/receive_heart_beat", "/deregister_worker"})
OPERATOR_PATHS = frozenset({"/metrics", "/workers", "/workers/drain", "/workers/undrain", "/flush_cache"})
CLIENT_PATHS = frozenset(
    {
        "/version", "/openapi.json", "/v1/models", "/v1/models/{name:path}", "/api/tags", "/api/ps", "/api/version",
        "/refresh_all_workers", "/list_models", "/list_multimodal_models", "/list_language_models", "/get_worker_address",
        "/worker_get_status", "/test_connection",
        *WORKER_PATHS, *GET_PATHS, *RESPONSE_PATHS, *TOLD_PATHS - OPERATOR_PATHS,
    }
)  # fmt: skip


ACCESS: dict[str, Access] = {
    **dict.fromkeys(OPEN_PATHS, Access.OPEN),
    **dict.fromkeys(CLIENT_PATHS, Access.CLIENT),
    **dict.fromkeys(OPERATOR_PATHS, Access.OPERATOR),
    **dict.fromkeys(REGISTRATION_PATHS, Access.WORKER),
}
"""By path, whatever the method. Beside them the page's files are open to a GET; what is not here is for clients."""
