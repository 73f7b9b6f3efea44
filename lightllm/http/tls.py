"""TLS of the HTTP server: the certificate from files, which may be replaced while it runs."""

from __future__ import annotations

import ssl

from lightllm.errors import InvalidOption

HANDSHAKE_SECONDS = 10.0
"""A client that has not finished its handshake by then loses its connection."""
SHUTDOWN_SECONDS = 5.0
"""How long a connection that is closed waits for the client to agree."""


class ServerTls:
    """The context for new connections; open ones keep the certificate that they began with."""

    def __init__(self, certificate: str, key: str | None) -> None:
        """PEM files: the certificate with what leads to its root, and its key (None: in the same file). Raises
        `InvalidOption`."""
        self._files = (certificate, key)
        self.reload()

    def reload(self) -> None:
        """Reads the files anew. Raises `InvalidOption`; the certificate is that of before then."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        certificate, key = self._files
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ssl.SSLError, _EncryptedKey) as error:
            raise InvalidOption(
                f"--ssl_certfile {certificate}, --ssl_keyfile {key or certificate}: {_reason(error)}.",
                "Give a certificate and its key, in PEM and without a password.",
            ) from error
        self.context = context


class _EncryptedKey(Exception):
    pass


def _no_password() -> str:
    """Else OpenSSL would ask for one at the terminal."""
    raise _EncryptedKey


def _reason(error: Exception) -> str:
    if isinstance(error, _EncryptedKey):
        return "the key is encrypted"
    if isinstance(error, ssl.SSLError):
        return f"no certificate with its key ({error.reason or 'PEM'})"
    return str(getattr(error, "strerror", error))
