"""What a message, and the MTA-STS policy of its recipients' domain, make of the plan for a host.

Layer: sans-I/O.  Spec: RFC 8689 (REQUIRETLS, TLS-Required), RFC 8461 §5; dane-tls R21, R48 to R51.
Input: the `Decision` that options and TLSA records gave.  Output: a `Decision` that is no weaker, or a `Refusal`.

    TLS-Required: no    neither DANE nor MTA-STS is asked (`choices_for`); what the configuration demands stays
    REQUIRETLS          DANE that authenticates, or a certificate that verifies for a host that DNSSEC or MTA-STS named
    otherwise           MTA-STS where DANE has no say

Invariants: a decision is never made weaker here; REQUIRETLS beats TLS-Required; hosts_avoid_tls never switches off what
a policy demands: both together put the host off.
"""

from __future__ import annotations

import enum
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from . import mta_sts
from .mta_sts import Mode, StsPolicy
from .plan import TlsLevel
from .requirement import ERRNO_TLS_REQUIRED, Decision, Refusal, Step, has_signed_way

if TYPE_CHECKING:
    from .hosts import Host
    from .requirement import TlsChoices

#: octets of a message in which its headers are looked for
_HEAD_OCTETS: Final = 1 << 20
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_HEADER: Final = re.compile(rb"^TLS-Required[ \t]*:(?:[ \t]|\r?\n[ \t])*No[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)


class Wish(enum.Enum):
    """What a message itself asks of TLS; the values are kept in the queue."""

    #: nothing: the recipients' side decides
    USUAL = ""
    #: REQUIRETLS (RFC 8689 §2): TLS that is proved at every hop, or no delivery
    REQUIRE = "require"
    #: ``TLS-Required: No`` (RFC 8689 §5): rather in clear than not at all
    OPTIONAL = "optional"


def wish_in(message: bytes) -> Wish:
    """What the header of a message asks for.  RFC 8689 §5: any other value than No is none."""
    head = _END_OF_HEAD.split(message[:_HEAD_OCTETS], maxsplit=1)[0]
    return Wish.OPTIONAL if _HEADER.search(head) else Wish.USUAL


def choices_for(wish: Wish, choices: TlsChoices) -> TlsChoices:
    """What the options say of a host, for a message with this wish."""
    if wish is Wish.OPTIONAL and choices.try_dane:
        return replace(choices, try_dane=False)
    return choices


def decide(
    found: Decision,
    host: Host,
    choices: TlsChoices,
    *,
    wish: Wish = Wish.USUAL,
    sts: StsPolicy | None = None,
    must_wait: str = "",
    is_by_dns: bool = True,
) -> Decision | Refusal:
    """What holds for a connection to `host` that is for such messages and for recipients of such a domain.

    Args:
        found: what options and TLSA records gave.
        sts: the policy in force for the recipients' domain; must_wait: why it cannot be told what is in force (R50).
        is_by_dns: the host comes from the MX records of that domain, not from the configuration.
    """
    plan = found.plan
    if wish is Wish.OPTIONAL:
        return replace(found, steps=(*found.steps, Step("RFC 8689 §5", "TLS-Required: no: no policy is enforced")))
    is_named_by_sts = False
    if must_wait and plan.level is not TlsLevel.DANE:
        return _refuse(found, must_wait, Step("R50", "what MTA-STS demands is not known: put off"))
    if sts is not None and sts.mode is not Mode.NONE:
        verdict = mta_sts.apply(sts, host.name, plan)
        step = _step(verdict.reason)
        if verdict.plan is None:
            return _refuse(found, f"MTA-STS: {host.name} is not named by the policy of {sts.domain}", step)
        if plan.level is TlsLevel.CLEAR and verdict.plan.level is not TlsLevel.CLEAR:
            avoided = Step("TL-2", "hosts_avoid_tls, but the policy demands TLS: put off")
            return _refuse(found, "a TLS session is required, but an attempt to start TLS failed", step, avoided)
        is_named_by_sts = sts.mode is Mode.ENFORCE and not verdict.mismatch
        found = replace(found, plan=verdict.plan, steps=(*found.steps, step))
    if wish is Wish.REQUIRE:
        return _require(found, host, choices, is_named=is_named_by_sts, is_by_dns=is_by_dns)
    return found


def _require(
    found: Decision, host: Host, choices: TlsChoices, *, is_named: bool, is_by_dns: bool
) -> Decision | Refusal:
    """R51."""
    plan = found.plan
    if plan.level is TlsLevel.DANE and plan.authenticates:
        return replace(found, steps=(*found.steps, Step("R51", "REQUIRETLS: DANE proves the host")))
    signed = host.mx_secure is True if is_by_dns else has_signed_way(host, choices)
    if not signed and not is_named:
        step = Step("R51", "REQUIRETLS: neither DNSSEC nor MTA-STS says that this is a mail host of the domain")
        refusal = _refuse(found, f"REQUIRETLS: nothing proves that {host.name} takes mail for {host.domain}", step)
        # a validated answer that is insecure stays so; where nobody validates, that is our own fault
        return replace(refusal, permanent=host.mx_secure is False)
    if plan.level is TlsLevel.CLEAR:
        step = Step("R51", "REQUIRETLS, but hosts_avoid_tls: put off")
        return _refuse(found, "a TLS session is required, but an attempt to start TLS failed", step)
    step = Step("R51", f"REQUIRETLS: a certificate for {host.name} that verifies")
    # DANE for insecure MX records stays what it is: the certificate must match, and that is not enough here
    if plan.level is TlsLevel.DANE:
        return _refuse(found, f"REQUIRETLS: DANE does not authenticate {host.name}", step)
    name = host.name.lower()
    plan = replace(plan, level=TlsLevel.VERIFIED, sni=name, reference_names=(name,), try_verify=False, try_clear=False)
    return replace(found, plan=plan, steps=(*found.steps, step))


def _refuse(found: Decision, message: str, *steps: Step) -> Refusal:
    return Refusal(
        message,
        ERRNO_TLS_REQUIRED,
        "tls_required",
        ttl_s=found.ttl_s,
        steps=(*found.steps, *steps),
        log=found.log,
    )


def _step(reason: str) -> Step:
    rule, _, text = reason.partition(": ")
    return Step(rule, text)
