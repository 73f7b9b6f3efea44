"""Which addresses and hosts count as public."""

import asyncio
import ipaddress

import pytest

from lightllm.errors import InvalidImage
from lightllm.images.addresses import Resolve, check_host, in_domains, is_public, public_addresses

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "172.32.0.1",
    "192.169.0.1",
    "2606:4700::1111",
    "2a00:1450:4001::1",
]
NOT_PUBLIC = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd12:3456::1", "ff02::1", "fec0::1", "2001:db8::1", "3fff::1", "100::1",
    "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::808:808", "64:ff9b:1::808:808", "2002:808:808::1",
    "2001:0:4136:e378::1", "2001:20::1",
]  # fmt: skip


@pytest.mark.parametrize("text", PUBLIC)
def test_ordinary_addresses_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_special_and_wrapping_addresses_are_not(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "host",
    [
        "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.1", "127.0.1", "1.2.3.4.5", "256.1.1.1", "1.2.3.0x4",
        "fe80::1%eth0", "2606:4700::1%1", "", ".", "a..b", "a b", "a_b.-c", "a/b", "x" * 64, "a\\b", "evil\0.example",
        ".".join(["abcdefgh"] * 30), "\udc80.example",
    ],
)  # fmt: skip
def test_other_spellings_of_addresses_and_what_is_no_name_are_refused(host: str) -> None:
    with pytest.raises(InvalidImage, match="^here: .* is no valid host name or address"):
        check_host(host, "here")


@pytest.mark.parametrize(
    ("host", "checked"),
    [
        ("Images.Example.", "images.example"), ("bücher.example", "xn--bcher-kva.example"), ("8.8.8.8", "8.8.8.8"),
        ("2606:4700:0::1", "2606:4700::1"), ("7.example", "7.example"), ("my_bucket.s3.example", "my_bucket.s3.example"),
        ("１２７.0.0.1", "127.0.0.1"),
    ],
)  # fmt: skip
def test_hosts_have_one_spelling(host: str, checked: str) -> None:
    try:
        assert check_host(host, "here") == checked
    except InvalidImage:
        assert (
            not host.isascii()
        )  # digits of other scripts: an address at best, which is checked, and no other host


def test_a_domain_permits_itself_and_what_is_below_it() -> None:
    domains = ["example.org", "10.0.0.5"]
    assert in_domains("example.org", domains) and in_domains("a.b.example.org", domains)
    assert in_domains("10.0.0.5", domains)
    assert not in_domains("badexample.org", domains) and not in_domains("example.org.evil.net", domains)


def addresses_of(host: str, answer: list[str] | OSError) -> list[str]:
    async def resolver(name: str, port: int) -> list[str]:
        if isinstance(answer, OSError):
            raise answer
        return answer

    return asyncio.run(public_addresses(host, 443, resolver, is_public, "here"))


def test_every_address_of_a_host_must_be_public() -> None:
    assert addresses_of("a.example", ["8.8.8.8", "2606:4700::1"]) == ["8.8.8.8", "2606:4700::1"]
    for answer in (["10.1.2.3"], ["8.8.8.8", "10.1.2.3"], ["8.8.8.8", "::ffff:10.1.2.3"], []):
        with pytest.raises(InvalidImage, match="no public address") as caught:
            addresses_of("a.example", answer)
        assert "10.1" not in caught.value.message


def test_a_name_without_an_answer_cannot_be_found() -> None:
    for answer in (OSError("no such name"), ["no address"]):
        with pytest.raises(InvalidImage, match=r"^here: the host a\.example cannot be found$"):
            addresses_of("a.example", answer)


def test_the_systems_resolver_answers_with_addresses() -> None:
    resolve = Resolve()
    try:
        assert set(asyncio.run(resolve("127.0.0.1", 80))) == {"127.0.0.1"}
    finally:
        resolve.close()
