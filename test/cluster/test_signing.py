import pytest

from lightllm.cluster.admission import AllowedWorkers
from lightllm.cluster.signing import BadSignature, Verifier, sign
from lightllm.errors import Forbidden

SECRET = b"a secret of sixteen"


def check(
    verifier: Verifier, value: str, now: float = 100.0, path: str = "/register_worker", body: bytes = b"{}"
) -> None:
    verifier.check(value, "POST", path, body, now)


def test_what_is_signed_with_the_secret_is_taken_once():
    verifier, value = Verifier(SECRET), sign(SECRET, "POST", "/register_worker", b"{}", 100.0)
    check(verifier, value)
    with pytest.raises(BadSignature, match="used before"):
        check(verifier, value, 101.0)


@pytest.mark.parametrize(
    "value", ["", "x", "1 2 3", "nan n m", sign(b"another secret", "POST", "/register_worker", b"{}", 100.0),
              sign(SECRET, "POST", "/other", b"{}", 100.0), sign(SECRET, "POST", "/register_worker", b"[]", 100.0),
              sign(SECRET, "GET", "/register_worker", b"{}", 100.0)],
)  # fmt: skip
def test_what_is_signed_otherwise_is_not(value):
    with pytest.raises(BadSignature):
        check(Verifier(SECRET), value)


@pytest.mark.parametrize("now", [60.0, 140.0])
def test_an_old_signature_and_one_of_the_future_are_refused(now):
    with pytest.raises(BadSignature, match="old"):
        check(Verifier(SECRET), sign(SECRET, "POST", "/register_worker", b"{}", 100.0), now)


def test_nonces_are_forgotten_when_their_signatures_are_too_old():
    verifier = Verifier(SECRET)
    for second in range(1000):
        check(verifier, sign(SECRET, "POST", "/register_worker", b"{}", float(second)), float(second))
    assert len(verifier._seen) < 100


def test_by_default_workers_are_on_this_machine_or_where_a_signed_registration_comes_from():
    unsigned, signed = AllowedWorkers(None, False), AllowedWorkers(None, True)
    assert unsigned.check("http://127.0.0.1:8000/", "10.0.0.1") == "http://127.0.0.1:8000"
    assert signed.check("http://10.0.0.1:8000", "10.0.0.1") == "http://10.0.0.1:8000"
    for allowed in (unsigned, signed):
        with pytest.raises(Forbidden, match="--allowed_workers 10.0.0.2"):
            allowed.check("http://10.0.0.2:8000", "10.0.0.1")
    with pytest.raises(Forbidden):
        unsigned.check("http://10.0.0.1:8000", "10.0.0.1")


def test_named_hosts_and_networks_are_allowed_and_nothing_else():
    allowed = AllowedWorkers(["10.0.0.0/8", "*.internal", "gpu1", "fd00::/8"], False)
    for url in ("http://10.1.2.3:8000", "https://a.internal", "http://GPU1:9", "http://[fd00::1]:80/base"):
        allowed.check(url, "")
    for url in (
        "http://127.0.0.1",
        "http://11.0.0.1",
        "http://internal",
        "http://gpu2",
        "http://169.254.169.254/latest",
    ):
        with pytest.raises(Forbidden):
            allowed.check(url, "")


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://user@127.0.0.1", "http://127.0.0.1?x=1", "http://127.0.0.1#x",
            "http://127.0.0.1:99999", "file:///etc/passwd", "http://[::1"],
)  # fmt: skip
def test_what_is_no_plain_url_is_no_worker(url):
    with pytest.raises(Forbidden):
        AllowedWorkers(["*"], True).check(url, "127.0.0.1")
