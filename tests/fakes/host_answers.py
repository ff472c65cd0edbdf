"""DNS answers in a line each, and a host search run over them: for tests of `engine.policy.mx`."""

from __future__ import annotations

import random

from engine.policy.answers import Answer, Mx, Status
from engine.policy.hosts import Found, Host, HostList
from engine.policy.mx import HostSearch, SearchOptions

DOMAIN = "example.test"
V4 = SearchOptions(families=("A",))


def mx(*records: tuple[int, str], ad: bool | None = None, name: str = DOMAIN, ttl: int = 300) -> Answer:
    found = tuple(Mx(preference, exchange) for preference, exchange in records)
    return Answer(
        name, "MX", Status.OK, ad=bool(ad), is_ad_trusted=ad is not None, mx=found, canonical_name=name, ttl_s=ttl
    )


def addresses(
    name: str, *texts: str, ad: bool | None = None, cnames: tuple[str, ...] = (), rdtype: str = "", ttl: int = 300
) -> Answer:
    rdtype = rdtype or ("AAAA" if texts and ":" in texts[0] else "A")
    status = Status.OK if texts else Status.NODATA
    canonical = cnames[-1] if cnames else name
    return Answer(
        name,
        rdtype,
        status,
        ad=bool(ad),
        is_ad_trusted=ad is not None,
        addresses=texts,
        canonical_name=canonical,
        cnames=cnames,
        ttl_s=ttl,
    )


def bad(name: str, rdtype: str, status: Status = Status.SERVFAIL) -> Answer:
    return Answer(name, rdtype, status, canonical_name=name)


def search(
    *answers: Answer, domain: str = DOMAIN, options: SearchOptions = V4, seed: int = 0, asked: list[str] | None = None
) -> Found:
    """Run a search; what is not among `answers` does not exist."""
    known = {(answer.name, answer.rdtype): answer for answer in answers}
    machine = HostSearch(domain, options, random=random.Random(seed))
    for _ in range(1000):
        query = machine.next_query()
        if query is None:
            break
        if asked is not None:
            asked.append(f"{query.rdtype} {query.name}")
        none = Answer(query.name, query.rdtype, Status.NXDOMAIN, canonical_name=query.name, ttl_s=60)
        machine.on_answer(known.get((query.name, query.rdtype), none))
    assert machine.result is not None
    return machine.result


def hosts(found: Found) -> tuple[Host, ...]:
    assert isinstance(found, HostList), found
    return found.hosts


def names(found: Found) -> list[str]:
    return [host.name for host in hosts(found)]


def addresses_of(found: Found) -> list[str]:
    return [host.address for host in hosts(found)]
