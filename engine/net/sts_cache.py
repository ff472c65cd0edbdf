"""The MTA-STS policies that are known: found by DNS, fetched by HTTPS, kept in memory and on disk.

Layer: adapter (trio).  Spec: RFC 8461 §3.3 (fetching, caching), §5.1, §10.2; dane-tls R49, R50.

**Facts.**  A policy holds for weeks from its fetch, whatever DNS says afterwards: who can take the TXT record away must
not be able to take the policy away.  So what protects a domain is what is on disk.  A disk can be full, and a file can
be damaged; a cache that then says "no policy" has been talked out of it.

**What it means.**  One file a domain, with a digest, replaced in one step: a damaged file is known to be one, and
concerns its domain only.  Where the file cannot be read and no policy can be fetched, the mail of that domain waits.
Where a policy of mode enforce cannot be kept, the mail of its domain waits, too: without it the next start would know
of nothing.

**What we do not do.**  No task that refreshes policies of domains that nobody writes to: an active domain refreshes its
own, once a day.  Several engines may share a directory; the last one to fetch wins.
Invariants: `look_up` never raises for DNS, HTTPS or the disk; one look-up at a time for a domain; a fetch that failed
is not repeated within `BACK_OFF_S`; a policy that holds is never given up because a fetch failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from ..errors import DataError
from ..policy.mta_sts import Mode, StsPolicy, parse_policy, record_id
from .expiring import Expiring
from .sts_fetch import FETCH_ERROR, StsFetchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..policy.answers import Answer
    from .resolver import Resolver

#: seconds after which the policy of an active domain is fetched again, RFC 8461 §10.2: "once per day"
REFRESH_S: Final = 86_400.0
#: seconds before a fetch that failed is repeated; precedent: mox
BACK_OFF_S: Final = 300.0
#: seconds for which an answer that depends on trouble of our own holds
TROUBLE_TTL_S: Final = 60.0
#: seconds for which an answer serves at least, as routes do
MIN_TTL_S: Final = 10.0
POLICY_INVALID: Final = "sts-policy-invalid"
#: octets of a file; a policy has at most 64 KiB
_MAX_FILE_OCTETS: Final = 256 * 1024
_MAX_NAME: Final = 200
#: domains kept in memory: those of a long list that goes round them; each takes about 200 octets
CACHE_SIZE: Final = 120_000
#: policies that are fetched at one time; arbitrary, few domains have one
_MAX_FETCHES: Final = 50


@dataclass(frozen=True, slots=True)
class StsAnswer:
    """What is known of one domain.

    Attributes:
        policy: in force; None for none.
        must_wait: why no mail may go to the domain for now, or "" (R50).
        problem: result type of TLSRPT for a policy that could not be had although there is one, or ""; detail: why.
    """

    policy: StsPolicy | None = None
    must_wait: str = ""
    problem: str = ""
    detail: str = ""


#: there is no policy, and nothing is wrong
NO_POLICY: Final = StsAnswer()


@dataclass(frozen=True, slots=True)
class _Stored:
    policy: StsPolicy
    fetched_at: float

    def holds(self, now: float) -> bool:
        return now < self.fetched_at + self.policy.max_age_s


@dataclass(slots=True, eq=False)
class _Flight:
    done: trio.Event = field(default_factory=trio.Event)


class StsPolicies:
    """See the module's text.

    Args:
        directory: where policies are kept; made with the first of them.
        resolver: for the TXT records.
        fetch: gives the body of a domain's policy file, or raises `StsFetchError`.
        clock: UTC epoch seconds.
        size: domains kept in memory.
    """

    def __init__(
        self,
        directory: str,
        resolver: Resolver,
        fetch: Callable[[str], Awaitable[bytes]],
        *,
        clock: Callable[[], float],
        size: int = CACHE_SIZE,
    ) -> None:
        self._directory = directory
        self._resolver = resolver
        self._fetch = fetch
        self._clock = clock
        self._kept: Expiring[str, StsAnswer] = Expiring(size, clock)
        self._failed: Expiring[str, StsFetchError] = Expiring(size, clock)
        self._rechecked: Expiring[str, bool] = Expiring(size, clock)
        self._flights: dict[str, _Flight] = {}
        self._turn = trio.CapacityLimiter(_MAX_FETCHES)

    def known_or_none(self, domain: str) -> StsAnswer | None:
        """What is in memory, without waiting for anything."""
        return self._kept.get_or_none(domain)

    def find_now(self, domain: str) -> StsAnswer | None:
        """As `look_up` for a domain without a policy whose record was asked for ahead; None for all others."""
        known = self._kept.get_or_none(domain)
        if known is not None:
            return known
        record = self._resolver.peek(record_name(domain), "TXT")
        if record is None or record_id(record.rdata) is not None or domain in self._flights:
            return None
        if _is_there(self._path(domain)):
            return None
        self._resolver.tell(record)
        self._keep(domain, NO_POLICY, _ttl(record))
        self._resolver.forget(record.name, "TXT")
        return NO_POLICY

    async def look_up(self, domain: str, *, recheck: bool = False) -> StsAnswer:
        """What is known of `domain`, asking DNS and its policy host as needed.

        Args:
            recheck: a host was not named by the policy that is known: see whether there is a newer one (R49).
        """
        if recheck and self._rechecked.get_or_none(domain) is None:
            self._rechecked.put(domain, True, BACK_OFF_S)
            self._kept.discard(domain)
        else:
            recheck = False
        while True:
            known = self._kept.get_or_none(domain)
            if known is not None:
                await trio.lowlevel.checkpoint()
                return known
            flight = self._flights.get(domain)
            if flight is None:
                break
            await flight.done.wait()
        flight = self._flights[domain] = _Flight()
        try:
            answer, ttl_s = await self._find(domain, recheck)
            self._keep(domain, answer, ttl_s)
            return answer
        finally:
            del self._flights[domain]
            flight.done.set()

    def _keep(self, domain: str, answer: StsAnswer, ttl_s: float) -> None:
        self._kept.put(domain, answer, max(ttl_s, MIN_TTL_S))

    async def _find(self, domain: str, recheck: bool) -> tuple[StsAnswer, float]:
        # nearly every domain has no file, which is known sooner than a thread begins
        stored, trouble = None, ""
        if _is_there(self._path(domain)):
            stored, trouble = await trio.to_thread.run_sync(self._read, domain)
        record = await self._resolver.query(record_name(domain), "TXT")
        now = self._clock()
        id = record_id(record.rdata)
        known = stored if stored is not None and stored.holds(now) else None
        if id is None:
            if known is None:
                return self._without(trouble), _ttl(record)
            return StsAnswer(known.policy), min(_ttl(record), _left(known, now))
        if known is not None and not recheck and known.policy.id == id and not self._is_old(known, now):
            return StsAnswer(known.policy), min(_ttl(record), _left(known, now))
        fetched = await self._fetched(domain, id, is_forced=recheck)
        if isinstance(fetched, StsFetchError):
            if known is not None:
                answer = StsAnswer(known.policy, problem=fetched.result_type, detail=fetched.message)
            else:
                answer = self._without(trouble, fetched)
            return answer, min(_ttl(record), BACK_OFF_S)
        error = await trio.to_thread.run_sync(self._write, fetched, now)
        ttl_s = min(_ttl(record), float(fetched.max_age_s))
        is_kept = known is not None and known.policy == fetched
        if error and fetched.mode is Mode.ENFORCE and not is_kept:
            text = f"MTA-STS: the policy of {domain} cannot be kept: {error}"
            return StsAnswer(fetched, must_wait=text), TROUBLE_TTL_S
        return StsAnswer(fetched), TROUBLE_TTL_S if error else ttl_s

    def _without(self, trouble: str, failed: StsFetchError | None = None) -> StsAnswer:
        """There is no policy; or there may be one in a file that cannot be read (R50)."""
        if not trouble and failed is None:
            return NO_POLICY
        problem, detail = (failed.result_type, failed.message) if failed is not None else ("", "")
        return StsAnswer(None, f"MTA-STS: {trouble}" if trouble else "", problem, detail)

    def _is_old(self, stored: _Stored, now: float) -> bool:
        age = now - stored.fetched_at
        return age > min(REFRESH_S, stored.policy.max_age_s / 2)

    async def _fetched(self, domain: str, id: str, *, is_forced: bool) -> StsPolicy | StsFetchError:
        failed = self._failed.get_or_none(domain)
        if failed is not None and not is_forced:
            return failed
        try:
            try:
                async with self._turn:
                    body = await self._fetch(domain)
                policy = parse_policy(domain, body, id)
            except DataError as error:
                raise StsFetchError(str(error), POLICY_INVALID) from error
        except StsFetchError as error:
            self._failed.put(domain, error, BACK_OFF_S)
            return error
        self._failed.discard(domain)
        return policy

    # --- the disk, in a thread ----------------------------------------------------------------------------------------

    def _path(self, domain: str) -> str:
        name = domain if len(domain) <= _MAX_NAME else hashlib.sha256(domain.encode()).hexdigest()
        return os.path.join(self._directory, f"{name}.json")

    def _read(self, domain: str) -> tuple[_Stored | None, str]:
        """What is on disk, and what is wrong with it."""
        path = self._path(domain)
        try:
            with open(path, "rb") as file:
                octets = file.read(_MAX_FILE_OCTETS)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"the policy that was kept in {path} cannot be read: {error.strerror}"
        try:
            return _decode(octets, domain), ""
        except ValueError as error:
            return None, f"the policy that was kept in {path} is damaged: {error}"

    def _write(self, policy: StsPolicy, now: float) -> str:
        """Keep a policy; what went wrong, or ""."""
        path, temporary = self._path(policy.domain), ""
        try:
            os.makedirs(self._directory, mode=0o755, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", suffix=".new", dir=self._directory)
            with open(handle, "wb") as file:
                file.write(_encode(policy, now))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            if temporary:
                try:
                    os.unlink(temporary)
                except OSError:
                    pass
            return f"{path}: {error.strerror}"
        return ""


def _is_there(path: str) -> bool:
    """Whether there is a file, or may be one: a directory that cannot be looked into says nothing of it (R50)."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def record_name(domain: str) -> str:
    """Where the record is that tells of a policy (RFC 8461 §3.1)."""
    return f"_mta-sts.{domain}"


def _encode(policy: StsPolicy, now: float) -> bytes:
    values = {
        "domain": policy.domain,
        "id": policy.id,
        "mode": policy.mode.value,
        "mx": policy.mx,
        "max_age": policy.max_age_s,
        "fetched_at": round(now, 3),
    }
    text = json.dumps(values, sort_keys=True)
    return json.dumps({"digest": hashlib.sha256(text.encode()).hexdigest(), "policy": text}).encode() + b"\n"


def _decode(octets: bytes, domain: str) -> _Stored:
    """Raises ValueError for whatever `_encode` has not made for this domain."""
    try:
        outer = json.loads(octets)
        text = outer["policy"]
        if hashlib.sha256(text.encode()).hexdigest() != outer["digest"]:
            raise ValueError("its digest is wrong")
        values = json.loads(text)
        policy = StsPolicy(
            values["domain"], Mode(values["mode"]), tuple(values["mx"]), int(values["max_age"]), values["id"]
        )
        stored = _Stored(policy, float(values["fetched_at"]))
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"it is not what was written: {error!r}") from None
    if policy.domain != domain:
        raise ValueError(f"it is that of {policy.domain!r}")
    return stored


def _ttl(record: Answer) -> float:
    return TROUBLE_TTL_S if record.is_error else float(record.ttl_s)


def _left(stored: _Stored, now: float) -> float:
    return stored.fetched_at + stored.policy.max_age_s - now


__all__ = ["FETCH_ERROR", "NO_POLICY", "POLICY_INVALID", "StsAnswer", "StsPolicies", "record_name"]
