"""`outrider why`: the whole decision in words and as JSON, with an exit status that tells what would happen to mail."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engine.cli import why as command
from engine.config import loads
from engine.policy.answers import Answer, Status
from engine.policy.plan import CLEAR, Plan, TlsLevel
from engine.values import parse_address
from fakes.dnssec import SignedDns, Signing, Zone
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT
from fakes.sts_world import DOMAIN, MX, policy, sts_scene
from fakes.tls_pairs import anchors

EE, EE512 = bytes(range(32)), bytes(range(64))


@pytest.fixture(scope="module")
def dns(shared_dns: Callable[..., SignedDns]) -> SignedDns:
    signed = Zone("s.test").mx("s.test", 10, "mx.s.test").mx("s.test", 20, "mx.p.test")
    signed.a("mx.s.test", "203.0.113.1").tlsa("mx.s.test", 3, 1, 1, EE).tlsa("mx.s.test", 3, 1, 2, EE512)
    signed.tlsa("mx.s.test", 0, 1, 1, EE)
    signed.mx("broken.s.test", 10, "mx.broken.s.test").a("mx.broken.s.test", "203.0.113.3")
    signed.tlsa("mx.broken.s.test", 3, 1, 1, EE).bogus.add(("_25._tcp.mx.broken.s.test", "TLSA"))
    signed.mx("null.s.test", 0, ".")
    signed.mx("alias.s.test", 10, "to.s.test").cname("to.s.test", "mx.p.test")
    plain = Zone("p.test", signing=Signing.NONE).mx("p.test", 10, "mx.s.test").a("mx.p.test", "203.0.113.2")
    return shared_dns([signed, plain, Zone("w.test", signing=Signing.WRONG).mx("w.test", 10, "mx.s.test")])


@dataclass
class Told:
    """What the command printed, and how it ended."""

    code: int
    text: str
    error: str

    @property
    def value(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text)
        return found


Ask = Callable[..., Told]


@pytest.fixture
def ask(dns: SignedDns, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(domain: str, *, as_json: bool = False, more: str = "", transport: str = "", server: str = "") -> Told:
        path = tmp_path / "why.toml"
        path.write_text(
            f'[dns]\nnameservers = ["{server or dns.resolver_address}"]\ntimeout = "2s"\n{more}\n'
            f'[transports.remote_smtp]\ndriver = "smtp"\n{transport}\n'
        )
        with pytest.raises(SystemExit) as caught:
            command.why(domain, path, as_json)
        printed = capsys.readouterr()
        return Told(int(caught.value.code or 0), printed.out, printed.err)

    return run


def test_dane_hop_by_hop(ask: Ask, dns: SignedDns) -> None:
    told = ask("s.test")
    assert told.code == 0
    for line in (
        f"  {dns.resolver_address}: its AD bit is believed (R1), and it validates (R10)",
        "  router dnslookup, transport remote_smtp",
        "host 1: mx.s.test [203.0.113.1]:25, preference 10",
        "  R15a: mx.s.test [203.0.113.1]: no alias, and its address is secure",
        "  R12: TLS with a certificate that matches the records of mx.s.test (DANE-EE)",
        f"     0 1 1 {EE.hex()}  (unusable: certificate usage 0 is not for SMTP)",
        f"     3 1 1 {EE.hex()}  (ignored: there is a stronger digest)",
        f"     3 1 2 {EE512.hex()}",
        "     SNI mx.s.test",
        "  -> over TLS that DANE has proved, or not at all",
        "host 2: mx.p.test [203.0.113.2]:25, preference 20",
        "  R7: mx.p.test [203.0.113.2]: its address is insecure: TLSA is not asked for",
        "mail goes to mx.s.test [203.0.113.1], over TLS that DANE has proved, or not at all",
    ):
        assert line in told.text.splitlines()
    assert "  A     mx.s.test: 203.0.113.1; secure; TTL " in told.text


def test_json_has_it_all(ask: Ask, dns: SignedDns) -> None:
    value = ask("s.test", as_json=True).value
    assert value["resolver"] == {"servers": [dns.resolver_address], "ad_trusted": True, "validates": True}
    assert (value["domain"], value["address"], value["exit_code"]) == ("s.test", "postmaster@s.test", 0)
    (question,) = [row for row in value["questions"] if row["type"] == "TLSA"]
    assert question["name"] == "_25._tcp.mx.s.test"
    assert (question["status"], question["ad"], question["secure"]) == ("ok", True, True)
    first, second = value["hosts"]
    assert first["plan"]["level"] == "dane"
    assert (first["plan"]["authenticates"], first["plan"]["tlsa_usage"], first["refusal"]) == (True, 8, None)
    assert [row["unusable"] is None for row in first["plan"]["tlsa"]] == [False, True, True]
    assert [step["rule"] for step in first["steps"]] == ["R15a", "R15", "R12"]
    assert [step["rule"] for step in second["steps"]] == ["R7", "TL-2"]
    assert second["plan"]["level"] == "opportunistic"


@pytest.mark.parametrize(
    ("domain", "code", "mail"),
    [
        (
            "p.test",
            0,
            "mail goes to mx.s.test [203.0.113.1], over TLS with a certificate that matches the TLSA records",
        ),
        ("alias.s.test", 0, "mail goes to to.s.test [203.0.113.2], over TLS if it is offered, whoever answers"),
        ("broken.s.test", 75, "mail waits: no host may be connected to for now"),
        ("w.test", 75, "mail waits: host lookup did not complete"),
        ("no.s.test", 69, "mail fails: Unrouteable address"),
        ("null.s.test", 69, "mail fails: an MX or SRV record indicated no SMTP service"),
        ("user@[203.0.113.9]", 0, "mail goes to [203.0.113.9] [203.0.113.9], over TLS if it is offered"),
    ],
)
def test_what_happens_to_mail(ask: Ask, domain: str, code: int, mail: str) -> None:
    told = ask(domain)
    assert told.text.splitlines()[-1].startswith(mail)
    assert told.code == code
    assert ask(domain, as_json=True).value["mail"] == told.text.splitlines()[-1]


def test_why_a_host_is_put_off(ask: Ask) -> None:
    text = ask("broken.s.test").text
    assert "  TLSA  _25._tcp.mx.broken.s.test: servfail; EDE 6 (DNSSEC Bogus)" in text
    assert "  R4: no answer is no denial: put off" in text
    assert "  -> no connection for now: DANE error: tlsa lookup DEFER" in text
    (host,) = ask("broken.s.test", as_json=True).value["hosts"]
    assert host["refusal"] == {"message": "DANE error: tlsa lookup DEFER", "errno": -36, "dane_fail": "dnssec-invalid"}


def test_options_of_the_transport_count(ask: Ask) -> None:
    assert "hosts_require_dane: put off" in ask("p.test", transport='hosts_require_dane = "*"').text
    assert ask("p.test", transport='hosts_require_dane = "*"').code == 75
    assert ask("s.test", transport='hosts_avoid_tls = "*"').code == 0, "the second host has no DANE"
    assert "in clear" in ask("s.test", transport='hosts_avoid_tls = "*"').text.splitlines()[-1]
    bad = ask("p.test", transport='tls_sni = "${if bool{$host}{a}{b}}"')
    assert "-> no connection: an option cannot be expanded: " in bad.text
    assert bad.code == 75


def test_a_resolver_that_is_not_believed(ask: Ask) -> None:
    """R1, R10"""
    text = ask("s.test", more='trust_ad = "never"').text
    assert "its AD bit is not believed (R1" in text
    assert "; AD not trusted; " in text
    assert "DN-3: " in text


def test_a_resolver_that_does_not_validate(ask: Ask, signed_dns: Callable[..., SignedDns]) -> None:
    """R10"""
    zone = Zone("s.test").mx("s.test", 10, "mx.s.test").a("mx.s.test", "203.0.113.1")
    resolver = signed_dns([zone], validate=False)
    told = ask("s.test", server=resolver.resolver_address)
    assert "it does not validate (R10): no DANE" in told.text


def test_bad_input(ask: Ask) -> None:
    told = ask("not a domain")
    assert (told.code, told.text) == (65, "")
    assert "is not valid" in told.error


@pytest.mark.slow
def test_without_configuration() -> None:
    """From the command line, with whatever resolver the machine has: an answer or a deferral, never a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "engine", "why", "[203.0.113.9]", "--json"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hosts"][0]["plan"]["level"] == "opportunistic"


async def test_mta_sts(tmp_path: Path) -> None:
    """R48, R49: a policy is fetched and heeded, and an MX that it does not name is put off."""
    async with sts_scene(tmp_path) as scene:
        text = (
            f'[main]\nqueue = "sqlite://{tmp_path}/queue.db"\n[dns]\nnameservers = ["{scene.dns.address}"]\n'
            f'[mta_sts]\nport = {scene.host.port}\nverify_certificates = "{anchors(tmp_path)}"\n'
            '[[routers]]\nname = "dnslookup"\ndriver = "dnslookup"\nself = "send"\ntransport = "t"\n'
            '[transports.t]\ndriver = "smtp"\n'
        )
        address = parse_address(f"user@{DOMAIN}")
        scene.publish(policy("enforce", "*.example.org"))
        story = await command._find_out(loads(text.encode()), address)
        assert f"  MTA-STS policy of {DOMAIN}: mode enforce, mx *.example.org" in story.as_text().splitlines()
        assert story.mail == f"mail goes to {MX} [127.0.0.1], over TLS with a certificate that verifies, or not at all"
        assert story.as_object()["mta_sts"]["policy"] == {"mode": "enforce", "mx": ("*.example.org",), "id": "1"}
        scene.publish(policy("enforce", "mx.elsewhere.example"))
        story = await command._find_out(loads(text.encode()), address)
        assert (story.exit_code, story.mail) == (75, "mail waits: no host may be connected to for now")
        assert f"-> no connection for now: MTA-STS: {MX} is not named by the policy of {DOMAIN}" in story.as_text()


def test_words_for_every_manner() -> None:
    plans = [CLEAR, *(Plan(level) for level in TlsLevel), Plan(TlsLevel.DANE, authenticates=False)]
    texts = [command.manner(plan) for plan in plans]
    assert len(set(texts)) == len(TlsLevel) + 1
    for plan, text in zip(plans, texts, strict=True):
        assert ("in clear" in text) is (plan.level <= TlsLevel.OPPORTUNISTIC)


def test_words_for_answers() -> None:
    answer = Answer("a.test", "TXT", Status.OK, rdata=(b"\1x",), canonical_name="b.test", cnames=("b.test",), ttl_s=5)
    assert command.question_as_text(answer) == "TXT   a.test: 0178 by way of b.test; AD not trusted; TTL 5"
