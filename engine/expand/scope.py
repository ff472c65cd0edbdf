"""What an expansion may look at: variables, headers, lookups, ACLs, a clock and a source of random numbers.

Layer: sans-I/O.  Spec: expansion.md 7 and 10 (state is per task, nothing is global).
A `Scope` belongs to one task; the evaluator changes `value`, `item`, `groups` and `acl_args` only while it runs
something that evaluates other programs in the same scope (an ACL), and puts them back.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from ._evaluate import State

if TYPE_CHECKING:
    from .acl import Acls
    from .searches import Lookups

LogWrite = Callable[[bytes, frozenset[str]], None]


class Scope(State):
    """One place of evaluation.

    Args:
        variables: name without ``$`` -> bytes, str, int (decimal), bool (yes/no), Certificate, None (unset), or a
            function without arguments that gives one of these, called at each use.
        headers: the message's header lines, each ``Name: value`` with its line ends.
        lookups: does `${lookup}`; None refuses every lookup.
        acls: runs `${acl}`; None knows no ACL.
        environ: what `${env}` may read: the allowed part of the environment.
        now: UTC epoch seconds, for `$tod_*`.
        random: n -> a number from 0 to n-1, for `${randint}`.
        timezone: local time for `$tod_log` and certificates.
        logwrite: takes what an ACL's `logwrite` says and the names of the logs.
        strict_acl_vars: `$acl_m_x` and its like are an error as long as nothing has set them (X-17).

    Attributes:
        value: what `$value` is at the start, or None.
        item: what `$item` is at the start, or None.
        groups: what `$0`, `$1` … are at the start.
    """

    __slots__ = (
        "acl_args",
        "acl_c",
        "acl_level",
        "acl_m",
        "acls",
        "cached",
        "dynamic",
        "environ",
        "first_delivery",
        "headers",
        "logwrite",
        "lookups",
        "now",
        "queue_running",
        "random",
        "router_variables",
        "strict_acl_vars",
        "timezone",
    )

    def __init__(
        self,
        variables: Mapping[str, Any] | None = None,
        *,
        headers: Sequence[bytes] = (),
        lookups: Lookups | None = None,
        acls: Acls | None = None,
        environ: Mapping[bytes, bytes] | None = None,
        now: Callable[[], float] | None = None,
        random: Callable[[int], int] | None = None,
        timezone: datetime.tzinfo = datetime.UTC,
        logwrite: LogWrite | None = None,
        strict_acl_vars: bool = False,
    ) -> None:
        super().__init__()
        self.variables = {} if variables is None else variables
        self.headers = headers
        self.lookups = lookups
        self.acls = acls
        self.environ: Mapping[bytes, bytes] = {} if environ is None else environ
        self.now = now
        self.random = random
        self.timezone = timezone
        self.logwrite = logwrite
        self.strict_acl_vars = strict_acl_vars
        self.acl_c: MutableMapping[str, bytes] = {}
        self.acl_m: MutableMapping[str, bytes] = {}
        self.router_variables: MutableMapping[str, bytes] = {}
        self.acl_args: tuple[bytes, ...] = ()
        #: how deep ACLs are nested just now
        self.acl_level = 0
        #: variables that an item sets for later: prvscheck_*, runrc, lookup_dnssec_authenticated
        self.dynamic: dict[str, bytes] = {}
        #: False where each evaluation of a lookup must reach its server
        self.cached = True
        self.first_delivery = True
        self.queue_running = False

    def __copy__(self) -> Scope:
        """A scope with the same contents; the ACL variables stay shared with this one."""
        twin = type(self).__new__(type(self))
        for name in ("variables", "value", "item", "groups"):
            setattr(twin, name, getattr(self, name))
        for name in Scope.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin
