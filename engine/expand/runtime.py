"""What a running program calls: variables, headers, lookups, ACLs, certificates, the clock.

Layer: sans-I/O.  Spec: expansion.md 7, 5, 6, 8; X-17, X-18, X-21, X-24.
Functions that take a scope first are seams: the evaluator hands the scope over with `$value`, `$item` and `$n` in
place, and takes back what they change.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from ..errors import ExpandError
from . import _evaluate, batv, certificates, headers, items, jsontext, mailtext, numbers, operators, regexes
from .lists import NESTING_LIMIT
from .listsplit import split_list
from .regexes import text as as_text
from .taint import is_tainted, quoter_of, taint
from .variables import DEFAULTS, Source, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .lists import ListText, NamedLists
    from .program import ExpandOptions
    from .scope import Scope
    from .searches import Search


# -- variables ------------------------------------------------------------------------------------------------------


def convert(value: Any) -> bytes:
    """The octets of a value that a scope holds (X-18)."""
    if isinstance(value, bytes):
        return value
    if value is None:
        return b""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, bool):
        return b"yes" if value else b"no"
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, certificates.Certificate):
        return b"<cert>"
    return convert(value())


def variable(scope: Scope, which: tuple[str, Source]) -> bytes:
    """The value of a variable that is not simply in the scope's mapping."""
    name, source = which
    if source is Source.ACL_M:
        return _user_variable(scope, scope.acl_m, name)
    if source is Source.ACL_C:
        return _user_variable(scope, scope.acl_c, name)
    if source is Source.ACL_ARG:
        number = int(name[7:])
        return scope.acl_args[number - 1] if number <= len(scope.acl_args) else b""
    if source is Source.ACL_NARG:
        return b"%d" % len(scope.acl_args)
    if source is Source.ROUTER:
        return _user_variable(scope, scope.router_variables, name)
    if source is Source.CLOCK:
        return _clock(name, scope)
    if source is Source.DYNAMIC:
        return scope.dynamic.get(name, DEFAULTS.get(name, b""))
    if source is Source.MESSAGE:
        return taint(headers.whole(scope.headers, decoded=name == "message_headers"))
    return convert(scope.variables.get(name))


def _user_variable(scope: Scope, values: Mapping[str, bytes], name: str) -> bytes:
    """X-17: empty as long as nothing has set it, or an error; in Exim also in a branch that is not taken, here not."""
    found = values.get(name)
    if found is None and scope.strict_acl_vars:
        raise ExpandError(unknown(f'unknown variable name "{name}"', name))
    return b"" if found is None else found


def _clock(name: str, scope: Scope) -> bytes:
    now = _now(scope)
    if name == "tod_epoch":
        return b"%d" % int(now)
    if name == "tod_epoch_l":
        return b"%d" % int(now * 1_000_000)
    moment = datetime.datetime.fromtimestamp(now, scope.timezone)
    if name == "tod_zulu":
        moment = moment.astimezone(datetime.UTC)
    return moment.strftime(_FORMATS[name]).encode("ascii")


_FORMATS = {
    "tod_bsdinbox": "%a %b %d %H:%M:%S %Y",
    "tod_full": "%a, %d %b %Y %H:%M:%S %z",
    "tod_log": "%Y-%m-%d %H:%M:%S",
    "tod_logfile": "%Y%m%d",
    "tod_zone": "%z",
    "tod_zulu": "%Y%m%d%H%M%SZ",
}


def _now(scope: Scope) -> float:
    if scope.now is None:
        raise ExpandError("no clock here")
    return scope.now()


def header(style: str, name: bytes, scope: Scope) -> bytes:
    """`$h_name:` and its kin."""
    return taint(headers.value(scope.headers, style, name))


def header_exists(name: bytes, scope: Scope) -> bool:
    """`def:h_name:`"""
    return headers.exists(scope.headers, name)


def flag(name: str, scope: Scope) -> bool:
    """`first_delivery` and `queue_running`."""
    return bool(getattr(scope, name))


def environment(scope: Scope, name: bytes) -> bytes | None:
    """`env`"""
    return scope.environ.get(name)


# -- certificates ---------------------------------------------------------------------------------------------------


def _certificate(name: str, scope: Scope) -> certificates.Certificate | None:
    value = scope.variables.get(name)
    if callable(value):
        value = value()
    return value if isinstance(value, certificates.Certificate) else None


def certificate_field(name: str, scope: Scope, selector: bytes) -> bytes | None:
    """`certextract`: the field, or None when there is no certificate or it has none."""
    certificate = _certificate(name, scope)
    found = None if certificate is None else certificates.extract(certificate, selector, scope.timezone)
    return None if found is None else taint(found)


def certificate_digest(algorithm: str, name: str, scope: Scope) -> bytes:
    """`${sha256:$tls_out_peercert}` and its like; empty without a certificate."""
    certificate = _certificate(name, scope)
    return b"" if certificate is None else taint(certificate.digest(algorithm))


# -- lookups and ACLs -----------------------------------------------------------------------------------------------


def look_up(search: Search, scope: Scope, *texts: bytes) -> bytes | None:
    """One lookup; `texts` are the key and the file, or the query."""
    if scope.lookups is None:
        raise ExpandError("no lookups can be done here")
    *keys, text = texts
    key = keys[0] if keys else None
    asked = text if key is None else key
    found = scope.lookups.find(
        search,
        key=key,
        text=text,
        tainted=is_tainted(asked),
        quoted_for=quoter_of(asked),
        text_tainted=key is not None and is_tainted(text),
        cached=scope.cached,
        scope=scope,
    )
    if found is None:
        return None
    if found.authenticated is not None:
        scope.dynamic["lookup_dnssec_authenticated"] = b"yes" if found.authenticated else b"no"
    if found.groups:
        mark = taint if key is not None and is_tainted(key) else bytes
        # the fixed part stands in the file as well, so it is not from outside
        scope.groups = (key or b"", mark(found.groups[0]), *found.groups[1:])
    return taint(found.value) if found.tainted else found.value


def acl_value(scope: Scope, name: bytes, *arguments: bytes) -> bytes:
    """`${acl{name}…}`"""
    if scope.acls is None:
        if not name:
            return b""
        raise ExpandError(f'ERROR from acl "{as_text(name)}"')
    return scope.acls.item(name, arguments, scope)


def acl_holds(scope: Scope, name: bytes, *arguments: bytes) -> bool:
    """`acl{{name}…}`; `$value` becomes its message."""
    if scope.acls is None:
        if not name:
            return False
        raise ExpandError(f'ERROR from acl "{as_text(name)}"')
    holds, message = scope.acls.condition(name, arguments, scope)
    scope.value = message or b""
    return holds


# -- signed return paths --------------------------------------------------------------------------------------------


def prvs(scope: Scope, address: bytes, key: bytes, number: bytes = b"0") -> bytes:
    """`prvs`"""
    signed = batv.sign(_now(scope), address, key, number)
    return taint(signed) if is_tainted(address) else signed


def prvs_parse(scope: Scope, text: bytes) -> bool:
    """`prvscheck`, first step: whether it looks like a signed address; its parts become variables."""
    signed = batv.parse(text)
    if signed is None:
        return False
    mark = taint if is_tainted(text) else bytes
    scope.dynamic["prvscheck_address"] = mark(signed.address)
    scope.dynamic["prvscheck_keynum"] = mark(signed.number)
    return True


def prvs_check(scope: Scope, text: bytes, key: bytes) -> bytes:
    """`prvscheck`, second step: `$prvscheck_result` is 1 for a good signature."""
    signed = batv.parse(text)
    scope.dynamic["prvscheck_result"] = b"1" if signed is not None and signed.is_good(_now(scope), key) else b""
    return b""


def prvs_end(scope: Scope, result: bytes) -> bytes:
    """`prvscheck`, last step: the address, unless a third argument said something else."""
    address = scope.dynamic.pop("prvscheck_address", b"")
    scope.dynamic.pop("prvscheck_keynum", None)
    return result or address


# -- lists ----------------------------------------------------------------------------------------------------------

#: what a list of filter, map … is split as: a list, one whose separator stands in the source (X-21), arrays of JSON
LIST, RAW_SEPARATOR, JSON, JSON_STRINGS = range(4)


def _split_json(text: bytes, strings: bool) -> list[bytes]:
    return jsontext.array(text, strings=strings)


_SUFFIXES = {"a": "addresses", "d": "domains", "h": "hosts", "l": "local_parts"}
_KINDS = {"a": "address", "d": "domain", "h": "host", "l": "localpart"}


def list_named(lists: NamedLists | None, full: str, text: bytes) -> bytes:
    """`listnamed`: a named list as one text, the named lists inside it too.

    Raises:
        ExpandError: there is none of that name and kind, or the suffix of the operator is none.
    """
    name = as_text(text).removeprefix("+")
    suffix = full.partition("_")[2][:1]
    if suffix and suffix not in _SUFFIXES:
        raise ExpandError('bad suffix on "list" operator')
    for letter in suffix or "dhal":
        table = getattr(lists, _SUFFIXES[letter]) if lists is not None else {}
        if name in table:
            return _flat(table[name], table, 0)
    kind = f"{_KINDS[suffix]} " if suffix else ""
    raise ExpandError(f'"{name}" is not a {kind}named list')


def _flat(value: ListText, table: Mapping[str, ListText], depth: int) -> bytes:
    if depth >= NESTING_LIMIT:
        raise ExpandError("named list is nested too deep")
    items = split_list(convert(value)) if isinstance(value, str | bytes) else [convert(item) for item in value]
    out = []
    for item in items:
        inner = table.get(as_text(item[1:])) if item.startswith(b"+") else None
        out.append(item.replace(b":", b"::") if inner is None else _flat(inner, table, depth + 1))
    return b" : ".join(out)


def _address_part(text: bytes, domain: bool) -> bytes:
    return mailtext.domain(text) if domain else mailtext.local_part(text)


def compile_dynamic(text: bytes, options: ExpandOptions) -> _evaluate.Code:
    """The code of text that a program makes or holds."""
    code: _evaluate.Code = _evaluate.hooks.compile_text(text, options)
    return code


def fit(compile_dynamic: Callable[[bytes, ExpandOptions], _evaluate.Code]) -> None:
    """Give the evaluator the functions it calls; done once, when engine.expand is imported.

    Args:
        compile_dynamic: compiles text that turns out to be code while a program runs.
    """
    hooks = _evaluate.hooks
    hooks.convert = convert
    hooks.variable = variable
    hooks.integer = numbers.integer
    hooks.split_json = _split_json
    hooks.compile_regex = regexes.compile_regex
    hooks.compile_text = compile_dynamic
    hooks.address_part = _address_part
    hooks.unescape = items.unescape
    hooks.check_number = items.check_number
    hooks.time_interval = operators.time_interval
