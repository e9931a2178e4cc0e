"""What the configuration says of TLS: what OpenSSL is told, or an error that names the key."""

import os
import shutil
import ssl
from pathlib import Path

import pytest

from tests.system.secure import Certificates
from txproxy.backends.reach import Way, ways
from txproxy.backends.tls import server_context
from txproxy.config import TlsSettings
from txproxy.errors import ConfigError


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def settings(mode: str = "require", **given: str) -> TlsSettings:
    nothing = dict.fromkeys(("key_file", "cert_file", "ca_file"), "")
    return TlsSettings(
        sslmode=mode, **{**nothing, "protocols": "secure", "ciphers": "default", **given}
    )


def context_of(mode: str = "require", **given: str) -> ssl.SSLContext:
    found = server_context(settings(mode, **given))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("mode", "verify", "name"),
    [
        ("allow", ssl.CERT_NONE, False),
        ("prefer", ssl.CERT_NONE, False),
        ("require", ssl.CERT_NONE, False),
        ("verify-ca", ssl.CERT_REQUIRED, False),
        ("verify-full", ssl.CERT_REQUIRED, True),
    ],
)
def test_what_is_verified(mode: str, verify: ssl.VerifyMode, name: bool) -> None:
    context = context_of(mode)
    assert (context.verify_mode, context.check_hostname) == (verify, name)


def test_only_named_authorities_count(certificates: Certificates) -> None:
    context = context_of("verify-full", ca_file=certificates.file("authority.crt"))
    [found] = context.get_ca_certs()
    assert found["subject"] == ((("commonName", "authority"),),)


@pytest.mark.parametrize(
    ("protocols", "least", "most"),
    [
        ("secure", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
        ("tlsv1.2", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2),
        ("TLSv1.3, TLSv1.2", ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
        ("tlsv1.3", ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3),
        ("all", ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_3),
        ("legacy", ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_3),
        ("tlsv1.1,secure", ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_3),
    ],
)
def test_protocols(protocols: str, least: ssl.TLSVersion, most: ssl.TLSVersion) -> None:
    context = context_of(protocols=protocols)
    assert (context.minimum_version, context.maximum_version) == (least, most)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("protocols", "sslv3", "must be a list of"),
        ("protocols", "", "must be a list of"),
        ("protocols", "tlsv1.1,tlsv1.3", "missing in between"),
        ("ciphers", "no such cipher", "OpenSSL does not take it"),
    ],
)
def test_words_that_nobody_knows(key: str, value: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        context_of(**{key: value})
    assert caught.value.key == f"server_tls_{key}"


def test_ciphers() -> None:
    wanted = "ECDHE-ECDSA-AES256-GCM-SHA384"
    names = [each["name"] for each in context_of(ciphers=wanted).get_ciphers()]
    assert [name for name in names if not name.startswith("TLS_")] == [wanted]


def test_files_that_are_no_certificates(certificates: Certificates, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    key = certificates.file("app.key")
    for given, wrong in (
        ({"ca_file": str(text)}, "ca_file"),
        ({"cert_file": str(text), "key_file": key}, "cert_file"),
        ({"cert_file": certificates.file("server.crt"), "key_file": key}, "cert_file"),
        ({"cert_file": certificates.file("app.crt"), "key_file": str(text)}, "cert_file"),
        ({"cert_file": str(tmp_path / "none"), "key_file": key}, "cert_file"),
        ({"cert_file": certificates.file("app.crt"), "key_file": str(tmp_path)}, "key_file"),
    ):
        with pytest.raises(ConfigError) as caught:
            context_of(**given)
        assert caught.value.key == f"server_tls_{wrong}"
        assert str(next(iter(given.values()))) in str(caught.value) or wrong == "key_file"


def test_a_key_with_a_password_is_refused_and_nobody_is_asked(
    certificates: Certificates, tmp_path: Path
) -> None:
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_text(_ENCRYPTED)
    with pytest.raises(ConfigError) as caught:
        context_of(cert_file=certificates.file("app.crt"), key_file=str(encrypted))
    assert caught.value.key == "server_tls_cert_file"


_ENCRYPTED = """-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAidQ3mFoGzFcgICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEC8KmIicGZdeSU5zIo4ve2wEgZBU
wIfGs47jG9nJAhePGLt3xkNBeJg98GfWhHbsdQhYM64z6xlJD7SwtQTb7lBE5NMJ
O0UOFy7p5RWGUuXlGM1oU8KIFyGtI0Yq6STXnswiPikHpcgsrEDRO5AgdDo0KuOP
AMhs485dZHR3weBQ+tFufT2aRX3wng093IlN6imYrxb+7Re9P6F/y4Bco2pJQM0=
-----END ENCRYPTED PRIVATE KEY-----
"""


def test_a_file_is_read_again_once_it_has_changed(
    certificates: Certificates, tmp_path: Path
) -> None:
    ca_file = tmp_path / "ca.crt"
    shutil.copyfile(certificates.file("authority.crt"), ca_file)
    first = context_of("verify-ca", ca_file=str(ca_file))
    assert context_of("verify-ca", ca_file=str(ca_file)) is first
    shutil.copyfile(certificates.file("stranger.crt"), ca_file)
    os.utime(ca_file, ns=(1, 1))
    [found] = context_of("verify-ca", ca_file=str(ca_file)).get_ca_certs()
    assert found["subject"] == ((("commonName", "stranger"),),)


# In which order it is tried.


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("disable", [(False, False)]),
        ("allow", [(False, False), (True, True)]),
        ("prefer", [(True, False), (False, False)]),
        ("require", [(True, True)]),
        ("verify-ca", [(True, True)]),
        ("verify-full", [(True, True)]),
    ],
)
def test_ways(mode: str, expected: list[tuple[bool, bool]]) -> None:
    found = ways("somewhere", 5432, settings(mode))
    assert [(way.context is not None, way.must) for way in found] == expected
    assert {str(way) for way in found} == {"somewhere:5432"}
    assert ways("/run/postgresql", 5432, settings(mode)) == [Way("/run/postgresql", 5432)]


def test_where_a_way_leads() -> None:
    assert Way("/run/postgresql", 5433).path == "/run/postgresql/.s.PGSQL.5433"
    assert Way("localhost", 5432).path == ""
    assert str(Way("::1", 5432)) == "[::1]:5432"
