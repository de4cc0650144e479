"""The reader of X.509 certificates agrees with another reader, and raises only ValueError for other bytes."""

from __future__ import annotations

import datetime
import random
import ssl
from collections.abc import Sequence

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.x509 import certificate as certificates
from agent.x509.certificate import in_pem, names_in_pem, read_certificate

KEY = ec.generate_private_key(ec.SECP256R1())
EARLIEST, LATEST = datetime.datetime(1950, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)


def made(
    subject: list[tuple[x509.ObjectIdentifier, str]],
    begins: datetime.datetime = datetime.datetime(2026, 1, 2, 3, 4, 5),
    ends: datetime.datetime = datetime.datetime(2027, 1, 2, 3, 4, 5),
    names: Sequence[str] = (),
) -> bytes:
    """A self-signed certificate in DER."""
    name = x509.Name([x509.NameAttribute(oid, text) for oid, text in subject])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    builder = builder.serial_number(7).not_valid_before(begins).not_valid_after(ends)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    from cryptography.hazmat.primitives.serialization import Encoding

    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


@settings(deadline=None, max_examples=60)
@given(
    begins=st.datetimes(EARLIEST, LATEST),
    lasts=st.timedeltas(datetime.timedelta(0), datetime.timedelta(days=40000)),
    name=st.text(st.characters(codec="utf-8", categories=("L", "N", "Zs")), min_size=1, max_size=16),
)
def test_times_and_subject_are_those_that_cryptography_reads(
    begins: datetime.datetime, lasts: datetime.timedelta, name: str
) -> None:
    begins = begins.replace(microsecond=0)
    ends = min(begins + min(lasts, LATEST - begins), LATEST).replace(microsecond=0)
    der = made([(NameOID.COMMON_NAME, name)], begins, ends)
    other, found = x509.load_der_x509_certificate(der), read_certificate(der)
    assert (found.not_before, found.not_after) == (other.not_valid_before_utc, other.not_valid_after_utc)
    assert found.subject == ("CN=" + "".join(each if each.isprintable() else "?" for each in name))[:100]


def test_a_subject_is_its_names_in_order() -> None:
    der = made([(NameOID.COUNTRY_NAME, "DE"), (NameOID.ORGANIZATION_NAME, "Ünïted"), (NameOID.COMMON_NAME, "hub")])
    assert read_certificate(der).subject == "O=Ünïted, CN=hub"


def test_a_certificate_without_a_subject_is_named_by_its_first_dns_names() -> None:
    der = made([], names=("hub.test", "b.test", "c.test", "d.test"))
    assert read_certificate(der).subject == "DNS=hub.test, DNS=b.test, DNS=c.test"
    assert read_certificate(made([])).subject == "without a name"


def test_what_a_peer_calls_itself_breaks_no_line_of_the_log() -> None:
    found = read_certificate(made([(NameOID.COMMON_NAME, "a\r\nlevel=error\x1b[31m" + "x" * 40)]))
    assert found.subject.isprintable()
    assert len(found.subject) <= 100


def test_every_certificate_of_a_pem_file_is_found_beside_its_key() -> None:
    ca = trustme.CA()
    issued = ca.create_child_ca().issue_cert("a.test")
    pem = b"text\n" + issued.private_key_pem.bytes() + b"".join(each.bytes() for each in issued.cert_chain_pems)
    assert len(in_pem(pem)) == 2
    assert in_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n") == []
    assert in_pem(b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n" + pem)[0].subject


def test_the_systems_own_roots_are_all_read() -> None:
    context = ssl.create_default_context()
    both = zip(context.get_ca_certs(binary_form=True), context.get_ca_certs(), strict=True)
    for der, decoded in both:
        found = read_certificate(der)
        assert found.not_after.timestamp() == ssl.cert_time_to_seconds(str(decoded["notAfter"]))
        assert found.not_before.timestamp() == ssl.cert_time_to_seconds(str(decoded["notBefore"]))


@pytest.mark.parametrize("seed", range(8))
def test_a_certificate_with_changed_bytes_is_read_or_is_a_value_error(seed: int) -> None:
    rng = random.Random(seed)
    whole = made([(NameOID.COMMON_NAME, "hub")], names=("hub.test",))
    for _ in range(2500):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(min(len(data), 300))
            change = rng.randrange(4)
            if change == 0:
                data[at] = rng.randrange(256)
            elif change == 1:
                del data[at : at + rng.randint(1, 40)]
            elif change == 2:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
            else:
                data[at] = rng.choice((0x80, 0x81, 0x84, 0x85, 0xFF, 0x7F, 0x1F, 0x30, 0x31))
        try:
            found = read_certificate(bytes(data))
        except ValueError:
            continue
        assert found.subject.isprintable()


def test_of_a_certificate_full_of_names_the_first_few_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    as_it_is = certificates._text

    def text(tag: int, content: bytes) -> str:
        read.append(content)
        return as_it_is(tag, content)

    monkeypatch.setattr(certificates, "_text", text)
    many = [(NameOID.COMMON_NAME, "ab")] * 2000
    assert read_certificate(made(many)).subject.startswith("CN=ab, CN=ab")
    assert read_certificate(made([], names=["a.test"] * 2000)).subject.startswith("DNS=a.test, DNS=")
    assert len(read) <= 20


def test_a_certificate_longer_than_openssl_takes_is_a_value_error() -> None:
    der = made([], names=["a" * 60 + ".test"] * 1600)
    with pytest.raises(ValueError, match="at most 100 KiB"):
        read_certificate(der)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_any_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of whatever kind
        read_certificate(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30",
        b"\x30\x80",
        b"\x30\x85\x00\x00\x00\x00\x01",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x82" * 2000,
        b"\x3f\x01\x00",
        b"\x30\x00" * 2,
        bytes(1 << 21),
    ],
    ids=["nothing", "cut", "endless", "long length", "4 GiB", "nested", "long tag", "two", "2 MiB"],
)
def test_lengths_that_promise_more_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"certificate|element|length|tag|DER"):
        read_certificate(data)


def test_all_dns_names_of_the_first_certificate_are_read() -> None:
    names = [f"h{number}.example.com" for number in range(20)] + ["*.Tunnel.example.com"]
    der = made([(NameOID.COMMON_NAME, "x")], names=names)
    pem = ssl.DER_cert_to_PEM_cert(der) + ssl.DER_cert_to_PEM_cert(made([], names=["other.example.com"]))
    assert names_in_pem(b"-- a key --\n" + pem.encode()) == [name.lower() for name in names]


@pytest.mark.parametrize("seed", range(5))
def test_a_certificate_that_cannot_be_read_has_no_names(seed: int) -> None:
    assert names_in_pem(b"") == names_in_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----") == []
    rng = random.Random(seed)
    der = bytearray(made([], names=["a.example.com", "b.example.com"]))
    for _ in range(300):
        broken = der.copy()
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        names_in_pem(ssl.DER_cert_to_PEM_cert(bytes(broken[: rng.randint(1, len(broken))])).encode())
