"""What TLS must prove for one host: what the options say and what the TLSA records say, made into a plan or a refusal.

Layer: sans-I/O.  Spec: events-dane 7.2 (decision), 7.3 (what DANE puts aside), 7.6 (dane:fail), 8 (TLS without DANE);
dane-tls R4, R5, R8, R12 to R15, R21, R36, R39; RFC 7672 §2.2, §3.2.
Input: a `Host` with what DNSSEC said of it, the `TlsChoices` of its transport, the TLSA answer.  Output: a `Decision`,
or a `Refusal`: no connection may be made, and the host is put off.  Here are the rules; `builder` asks the questions.

    host secure? --no--> as the options say (R7)            TLSA secure, usable -> DANE
         |yes: TLSA of its base domains                     TLSA secure, none usable -> TLS, whoever it is (R21)
         |                                                  denied, or insecure -> as the options say (R5)
         +--error--> put off (R4)                           hosts_require_dane and no DANE -> put off, never failed

Invariants: an error is never taken for a denial; what was asked for with hosts_require_dane is never less than DANE;
hosts_avoid_tls never switches DANE off: both together put the host off; the order of the records changes nothing (R24).
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..tls import tlsa
from .plan import ANY_NAME, CLEAR, Plan, TlsLevel

if TYPE_CHECKING:
    from collections.abc import Callable

    from .hosts import Host

#: 11.6 of the behaviour specification: insecure address; look-up to be done again; TLS failed; TLS cannot be had
ERRNO_INSECURE: Final = -32
ERRNO_DANE: Final = -36
ERRNO_TLS: Final = -37
ERRNO_TLS_REQUIRED: Final = -38
LOOKUP_DEFER: Final = "DANE error: tlsa lookup DEFER"
LOOKUP_FAIL: Final = "DANE error: tlsa lookup FAIL"
#: result types of TLSRPT that `dane:fail` tells (7.6)
DANE_REQUIRED: Final = "dane-required"
DNSSEC_INVALID: Final = "dnssec-invalid"
TLSA_INVALID: Final = "tlsa-invalid"
VALIDATION_FAILURE: Final = "validation-failure"
STARTTLS_NOT_SUPPORTED: Final = "starttls-not-supported"
#: bit of DANE-TA in `$tls_out_tlsa_usage` (DN-14)
_TA_BIT: Final = 1 << tlsa.Usage.DANE_TA


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a decision, for people: the rule that was applied, and what came of it.

    Attributes:
        said: what came of it, or what makes the text: few read it, and each connection takes the step.
    """

    rule: str
    said: str | Callable[[], str]

    @property
    def text(self) -> str:
        return self.said if isinstance(self.said, str) else self.said()

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


class InsecureMx(enum.Enum):
    """What TLSA records are worth where the MX records are not signed (R13)."""

    #: nothing: they are not asked for
    MAY = "may"
    #: TLS is mandatory, the certificate is not checked
    ENCRYPT = "encrypt"
    #: the certificate must match, and does not count as verified
    DANE = "dane"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsChoices:
    """What the options of a transport say of one host, expanded and matched.

    Attributes:
        avoid_tls, require_tls: in hosts_avoid_tls, hosts_require_tls.
        verify, try_verify: in tls_verify_hosts (or TL-1), tls_try_verify_hosts, with trust anchors to verify by (TL-9).
        any_name: not in tls_verify_cert_hostnames.
        try_clear: tls_tempfail_tryclear.
        request_dnssec: what DNSSEC said of the host may be heeded (DN-3); require_dnssec: its address must be secure.
        try_dane, require_dane: in hosts_try_dane, hosts_require_dane.
        insecure_mx: see `InsecureMx`.
        trust_host_list: hosts that the configuration names are as good as a signed MX record (R14).
        sni: tls_sni; empty for the host's name.
        ciphers, dane_ciphers: tls_require_ciphers, dane_require_tls_ciphers; empty for none.
        dane_ciphers_error: why dane_require_tls_ciphers cannot be expanded, which is a TLS failure where DANE is used.
    """

    avoid_tls: bool = False
    require_tls: bool = False
    verify: bool = False
    try_verify: bool = False
    any_name: bool = False
    try_clear: bool = True
    request_dnssec: bool = True
    require_dnssec: bool = False
    try_dane: bool = True
    require_dane: bool = False
    insecure_mx: InsecureMx = InsecureMx.DANE
    trust_host_list: bool = True
    sni: str = ""
    ciphers: str = ""
    dane_ciphers: str = ""
    dane_ciphers_error: str = ""

    @property
    def wants_dane(self) -> bool:
        return self.try_dane or self.require_dane


@dataclass(frozen=True, slots=True)
class Decision:
    """A connection may be made under `plan`.

    Attributes:
        ttl_s: seconds for which this holds; None if no answer of DNS limits it.
        usage_mask: `$tls_out_tlsa_usage`; 0 where DANE is not used.
        depends_on_domain: names of the next hop are among the reference names: hold it for recipients of its domain
            only (DN-11, R46).
        log: lines for the main log.
    """

    plan: Plan
    ttl_s: int | None = None
    usage_mask: int = 0
    depends_on_domain: bool = False
    steps: tuple[Step, ...] = ()
    log: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """No connection may be made to this host for now (DN-6, DN-7, R42: always temporary).

    Attributes:
        message, errno: as in the log; retry_name: as retry rules know it (RT-7).
        dane_fail: the data of `dane:fail` (7.6), or "".
        permanent: nothing will change: addresses fail if this was the last host (R51); never where DANE refuses (R42).
    """

    message: str
    errno: int = ERRNO_DANE
    retry_name: str = ""
    dane_fail: str = ""
    ttl_s: int | None = None
    steps: tuple[Step, ...] = ()
    log: tuple[str, ...] = ()
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class TlsaRecords:
    """A secure TLSA RRset: `base` is its base domain (R15), `records` raw rdata, sorted and without repetition."""

    base: str
    records: tuple[bytes, ...]
    ttl_s: int


def has_signed_way(host: Host, choices: TlsChoices) -> bool:
    """Whether everything that led to the name of `host` is secure (R12 to R14)."""
    if host.mx_secure is None:
        return choices.trust_host_list
    return host.mx_secure


def base_domains(host: Host) -> tuple[tuple[str, ...], Step]:
    """Names to look for TLSA records at, best first (R15), and the rule that gives them; none where DANE cannot be.

    Addresses count one by one (R8): a host may have DANE at one address and not at another.
    """
    where = f"{host.name} [{host.address}]"
    is_alias = bool(host.canonical_name) and host.canonical_name != host.name
    if _name_or_none(host.name) is None:
        return (), Step("R14", f"{where}: an address has no TLSA records")
    if host.address_secure is None and host.alias_secure is None:
        return (), Step("DN-3", f"{where}: nobody we trust says whether its address is secure: no DANE")
    if host.address_secure:
        if not is_alias:
            return (host.name,), Step("R15a", f"{where}: no alias, and its address is secure")
        both = (host.canonical_name, host.name)
        return both, Step("R15b", f"{where}: alias of {host.canonical_name}, secure all the way: both may have records")
    if is_alias and host.alias_secure:
        return (host.name,), Step("R15c", f"{where}: a secure alias of {host.canonical_name}, which is not secure")
    if is_alias:
        return (), Step("R15d", f"{where}: an alias, and not secure from its first link on: TLSA is not asked for")
    return (), Step("R7", f"{where}: its address is insecure: TLSA is not asked for")


def reference_names(host: Host, base: str, choices: TlsChoices) -> tuple[str, ...]:
    """Names of which DANE-TA wants one in the certificate, most specific first (R36)."""
    names = [base]
    if host.mx_secure:
        names += [host.domain, host.domain_canonical_name]
    elif host.mx_secure is None and choices.trust_host_list:
        # a host that the configuration names: the name before the alias is as good
        names.append(host.name)
    return tuple(dict.fromkeys(name for name in names if name and not name.startswith("[")))


# --- decisions --------------------------------------------------------------------------------------------------------


def without_dane(
    host: Host,
    choices: TlsChoices,
    steps: tuple[Step, ...],
    *,
    ttl_s: int | None = None,
    log: tuple[str, ...] = (),
    is_mandatory: bool = False,
) -> Decision:
    """What the options say where DANE has no say (DN-9).

    Args:
        is_mandatory: TLSA records were there, and no clear text may go to this host (R21).
    """
    if choices.avoid_tls:
        steps = (*steps, Step("TL-2", "hosts_avoid_tls: in clear"))
        return Decision(CLEAR, ttl_s, steps=steps, log=log)
    required = choices.require_tls or is_mandatory
    if choices.verify:
        # Stricter than Exim, which would send in clear where TLS is not offered: what must be verified must be there.
        level, step = TlsLevel.VERIFIED, Step("TL-9", "tls_verify_hosts: TLS with a certificate that verifies")
    elif required:
        rule = "R21" if is_mandatory else "TL-6"
        level, step = TlsLevel.MANDATORY, Step(rule, "TLS is mandatory, the certificate need not verify")
    else:
        level, step = TlsLevel.OPPORTUNISTIC, Step("TL-2", "TLS where it is offered, the certificate need not verify")
    steps = (*steps, step)
    plan = Plan(
        level,
        sni=choices.sni or _name_or_none(host.name),
        reference_names=(ANY_NAME,) if choices.any_name else (host.name,),
        try_verify=choices.try_verify and not choices.verify,
        try_clear=choices.try_clear and level is TlsLevel.OPPORTUNISTIC,
        ciphers=choices.ciphers or None,
        reasons=steps,
    )
    return Decision(plan, ttl_s, steps=steps, log=log)


def with_records(
    host: Host,
    choices: TlsChoices,
    found: TlsaRecords,
    steps: tuple[Step, ...],
    *,
    log: tuple[str, ...] = (),
) -> Decision | Refusal:
    """What a secure TLSA RRset demands."""
    mask = _usage_mask(found.records)
    signed = has_signed_way(host, choices)
    if choices.avoid_tls:
        # 7.5: hosts_avoid_tls does not switch DANE off, it makes it fail
        return Refusal(
            "a TLS session is required, but an attempt to start TLS failed",
            ERRNO_TLS_REQUIRED,
            "tls_required",
            VALIDATION_FAILURE,
            found.ttl_s,
            (*steps, Step("7.5", "hosts_avoid_tls, but the TLSA records demand TLS: put off")),
            log,
        )
    if not mask:
        steps = (*steps, Step("R21", f"no record of {found.base} is usable: TLS without a check of the certificate"))
        log = (*log, "DANE error: No usable TLSA records")
        if choices.require_dane:
            steps = (*steps, Step("R21", "hosts_require_dane: put off"))
            return Refusal(LOOKUP_FAIL, dane_fail=TLSA_INVALID, ttl_s=found.ttl_s, steps=steps, log=log)
        return without_dane(host, choices, steps, ttl_s=found.ttl_s, log=log, is_mandatory=True)
    if not signed and choices.insecure_mx is InsecureMx.ENCRYPT:
        steps = (*steps, Step("R13", "the MX records are insecure: TLS without a check of the certificate (encrypt)"))
        return without_dane(host, choices, steps, ttl_s=found.ttl_s, log=log, is_mandatory=True)
    if choices.dane_ciphers_error:
        return Refusal(
            f"TLS session: {choices.dane_ciphers_error}",
            ERRNO_TLS,
            "tls_required",
            VALIDATION_FAILURE,
            found.ttl_s,
            (*steps, Step("7.3", "dane_require_tls_ciphers cannot be expanded")),
            log,
        )
    names: tuple[str, ...] = (found.base,)
    depends_on_domain = False
    if mask & _TA_BIT:
        names = reference_names(host, found.base, choices)
        depends_on_domain = bool(host.mx_secure) and len(names) > 1
    said = functools.partial(_dane_text, found.base, mask, names, signed=signed)
    steps = (*steps, Step("R12" if signed else "R13", said))
    plan = Plan(
        TlsLevel.DANE,
        sni=found.base,
        reference_names=names,
        tlsa=found.records,
        ciphers=choices.dane_ciphers or choices.ciphers or None,
        authenticates=signed,
        reasons=steps,
    )
    return Decision(plan, found.ttl_s, mask, depends_on_domain, steps, log)


@functools.lru_cache(maxsize=256)
def _usage_mask(records: tuple[bytes, ...]) -> int:
    return tlsa.usage_mask(records)


def _dane_text(base: str, mask: int, names: tuple[str, ...], *, signed: bool) -> str:
    usages = [usage.name.replace("_", "-") for usage in tlsa.Usage if mask >> usage & 1]
    text = f"TLS with a certificate that matches the records of {base} ({', '.join(usages)})"
    if mask & _TA_BIT:
        text += f" and is for {' or '.join(names)}"
    return text if signed else f"{text}; the MX records are insecure, so it does not count as verified"


def refuse_unsigned(host: Host) -> Refusal | None:
    """dnssec_require_domains (section 6), for which an address that was looked up must be secure."""
    if host.address_secure or _name_or_none(host.name) is None:
        return None
    step = Step("6", f"{host.name} [{host.address}]: dnssec_require_domains, and its address is not secure: put off")
    return Refusal(
        f"lookup of IP address for {host.name} was insecure", ERRNO_INSECURE, "lookup", DNSSEC_INVALID, steps=(step,)
    )


def refuse_insecure(host: Host, steps: tuple[Step, ...]) -> Refusal:
    """hosts_require_dane, and the host itself is not secure (last row of 7.2, R13)."""
    steps = (*steps, Step("7.2", "hosts_require_dane: put off"))
    return Refusal(f"DANE error: {host.name} lookup not DNSSEC", dane_fail=DANE_REQUIRED, steps=steps)


def refuse_without_records(
    choices: TlsChoices, steps: tuple[Step, ...], *, ttl_s: int | None, log: tuple[str, ...]
) -> Refusal | None:
    """hosts_require_dane, and there are no secure records; None if DANE is not required."""
    if not choices.require_dane:
        return None
    steps = (*steps, Step("7.2", "hosts_require_dane: put off"))
    return Refusal(LOOKUP_FAIL, dane_fail=DANE_REQUIRED, ttl_s=ttl_s, steps=steps, log=log)


def refuse_for_error(
    choices: TlsChoices, steps: tuple[Step, ...], *, is_timeout: bool, log: tuple[str, ...]
) -> Refusal:
    """R4: an error at any step makes the host unreachable: never clear text, never unauthenticated TLS."""
    steps = (*steps, Step("R4", "no answer is no denial: put off"))
    dane_fail = DANE_REQUIRED if choices.require_dane else DNSSEC_INVALID
    return Refusal(
        LOOKUP_DEFER, retry_name="timeout_DNS" if is_timeout else "", dane_fail=dane_fail, steps=steps, log=log
    )


def _name_or_none(name: str) -> str | None:
    """A host name for SNI, which takes no address (RFC 6066 §3)."""
    return None if name.startswith("[") or ":" in name or name.replace(".", "").isdigit() else name
