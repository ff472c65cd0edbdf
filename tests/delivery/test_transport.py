"""What the options of a transport say of one host: the choices about TLS and DANE, and what is wrong with an option."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.config import TransportOptions
from engine.delivery.transport import HostDecisions, Transport
from engine.errors import ConfigError, ExpandError
from engine.expand import Scope
from engine.expand.lists import NamedLists
from engine.policy.hosts import Host
from engine.policy.requirement import InsecureMx, TlsChoices

HOST = Host("mx.test", "192.0.2.1", domain="d.test")
DEFAULTS = TlsChoices(try_verify=True)


def compiled(**options: Any) -> Transport:
    return Transport.compile("smtp", TransportOptions(driver="smtp", **options), NamedLists())


def decide(host: Host = HOST, **options: Any) -> HostDecisions:
    scope = Scope({"host": host.name, "host_address": host.address, "primary_hostname": "me.test"})
    return compiled(**options).decide(host, scope)


def test_defaults() -> None:
    """Section 6: DANE is tried with everybody, certificates are looked at, nothing is demanded."""
    made = decide()
    assert made.tls == DEFAULTS
    assert made.files.verify_certificates == "system"
    assert (made.files.crl, made.files.certificate, made.files.private_key) == (None, None, None)
    assert compiled().is_pure
    assert compiled().is_fixed


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"hosts_try_dane": ""}, {"try_dane": False}),
        ({"hosts_try_dane": "!mx.test : *"}, {"try_dane": False}),
        ({"hosts_require_dane": "192.0.2.0/24"}, {"require_dane": True}),
        ({"hosts_avoid_tls": "mx.test"}, {"avoid_tls": True}),
        ({"hosts_require_tls": ("*.other", "mx.test")}, {"require_tls": True}),
        ({"tls_verify_hosts": "*"}, {"verify": True}),
        ({"tls_try_verify_hosts": ":"}, {"try_verify": False}),
        # TL-1: both unset; a list of nobody counts as set
        ({"tls_try_verify_hosts": ""}, {"try_verify": False, "verify": True}),
        ({"tls_try_verify_hosts": "", "tls_verify_hosts": ":"}, {"try_verify": False}),
        # TL-9: without anchors there is nothing to verify by
        ({"tls_verify_certificates": "", "tls_verify_hosts": "*"}, {"try_verify": False}),
        ({"tls_verify_cert_hostnames": ":"}, {"any_name": True}),
        ({"tls_tempfail_tryclear": False}, {"try_clear": False}),
        ({"dane_insecure_mx": "encrypt"}, {"insecure_mx": InsecureMx.ENCRYPT}),
        ({"dane_trust_host_list": False}, {"trust_host_list": False}),
        ({"tls_sni": "x.$host"}, {"sni": "x.mx.test"}),
        ({"tls_require_ciphers": "HIGH"}, {"ciphers": "HIGH"}),
        ({"tls_require_ciphers": "${if eq{a}{b}{c}fail}"}, {}),
        ({"dane_require_tls_ciphers": "${lc:ECDHE}"}, {"dane_ciphers": "ecdhe"}),
        ({"dane_require_tls_ciphers": "${if eq{a}{b}{c}fail}"}, {}),
        ({"dnssec_request_domains": ":"}, {"request_dnssec": False}),
        ({"dnssec_require_domains": "mx.test"}, {"require_dnssec": True}),
        ({"dnssec_require_domains": "mx.test", "dnssec_request_domains": ""}, {"require_dnssec": True}),
        ({"hosts_require_dane": "${if eq{$host_address}{192.0.2.1}{*}{:}}"}, {"require_dane": True}),
    ],
)
def test_each_option(options: dict[str, Any], changes: dict[str, Any]) -> None:
    assert decide(**options).tls == replace(DEFAULTS, **changes)


def test_files_are_expansions() -> None:
    made = decide(
        tls_verify_certificates="/a/$host",
        tls_crl="/b/$host",
        tls_certificate="/c/$host_address",
        tls_privatekey="${if eq{a}{b}{c}fail}",
    ).files
    assert (made.verify_certificates, made.crl, made.certificate) == ("/a/mx.test", "/b/mx.test", "/c/192.0.2.1")
    assert made.private_key is None


def test_dane_ciphers_that_cannot_be_expanded_are_kept_for_when_they_are_wanted() -> None:
    made = decide(dane_require_tls_ciphers="${if bool{$host}{a}{b}}").tls
    assert (made.dane_ciphers, bool(made.dane_ciphers_error)) == ("", True)
    with pytest.raises(ExpandError):
        decide(tls_require_ciphers="${if bool{$host}{a}{b}}")


def test_what_can_change_is_not_kept() -> None:
    assert not compiled(tls_sni="$tod_full").is_fixed
    assert not compiled(tls_sni="${randint:9}").is_fixed
    assert not compiled(hosts_require_dane="${if eq{$host}{x}{*}{:}}").is_fixed
    assert compiled(tls_sni="${lc:$host}").is_fixed
    assert compiled(tls_sni="$lookup_dnssec_authenticated").is_fixed
    assert not compiled(tls_crl="${lookup{x}lsearch{/nothing}}").is_pure


@pytest.mark.parametrize(
    "name", ["hosts_try_dane", "hosts_require_dane", "dnssec_request_domains", "tls_verify_cert_hostnames"]
)
def test_a_bad_list_is_an_error_of_the_configuration(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compiled(**{name: "^("})
    assert caught.value.key == f"transports.smtp.{name}"


def test_the_window_may_differ_from_host_to_host() -> None:
    assert decide().window == 4
    assert decide(pipeline_window="8").window == 8
    assert decide(hosts_avoid_pipelining="mx.test").window == 0
    text = "${if match_domain{$host}{*.test : big.example}{8}{2}}"
    assert decide(pipeline_window=text).window == 8
    assert decide(Host("mx.example", "192.0.2.1"), pipeline_window=text).window == 2


@pytest.mark.parametrize("text", ["${if eq{a}{b}{8}}", "${substr_0_1:eight}", "0", "-1"])
def test_a_window_must_be_a_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not a whole number above 0") as caught:
        decide(pipeline_window=text)
    assert caught.value.key == "transports.smtp.pipeline_window"
