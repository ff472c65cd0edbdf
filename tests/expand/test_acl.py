"""Access control lists run by `${acl}`: verbs, conditions, modifiers, messages, nesting (A-1 to A-8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from engine.errors import ConfigError, ExpandError, ForcedFailure
from engine.expand import ExpandOptions, Scope, compile_text
from engine.expand.acl import Acls
from engine.expand.lists import NamedLists
from engine.expand.searches import SearchDeferral
from fakes.peer_exim import EximOracle


class _Down:
    def find(self, search: Any, *, text: bytes, **_: Any) -> None:
        raise SearchDeferral(text, "server is down")


def _run(
    acls: dict[str, str] | str, text: str = "${acl{a}{one}{two}}", **variables: Any
) -> tuple[Any, list[Any], Scope]:
    """The value or the error of `text`, what was logged, and the scope afterwards."""
    log: list[Any] = []
    options = ExpandOptions(lists=NamedLists(domains={"ld": "a.test"}))
    texts = {"a": acls} if isinstance(acls, str) else acls
    scope = Scope(
        variables,
        acls=Acls.compile(texts, options=options),
        lookups=_Down(),
        logwrite=lambda line, logs: log.append((line, sorted(logs))),
    )
    try:
        result: Any = bytes(compile_text(text).evaluate(scope))
    except ExpandError as error:
        result = error
    return result, log, scope


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("accept", b"", True),
        ("accept message = hello $acl_arg1 $acl_narg", b"hello one 2", True),
        ("deny message = no", b"no", False),
        ("deny", b"", False),
        ("", b"", False),
        ("accept condition = 0", b"", False),
        ("accept condition = 1\n message = yes", b"yes", True),
        ("accept condition = no", b"", False),
        ("accept condition = ${if eq{$acl_arg1}{one}{yes}{no}}", b"", True),
        ("accept !condition = 0", b"", True),
        ("accept condition =", b"", False),
        ("accept condition = -0", b"", False),
        ("deny condition = 0\naccept message = second", b"second", True),
        ("require condition = 0\n message = required", b"", False),
        ("require message = required\n condition = 0", b"required", False),
        ("require condition = 1\naccept message = on", b"on", True),
        ("warn message = w\naccept", b"", True),
        ("warn", b"", False),
        ("accept domains = a.test", b"", True),
        ("accept domains = +ld", b"", True),
        ("accept domains = b.test", b"", False),
        ("accept !domains = b.test", b"", True),
        ("accept local_parts = ann : bob", b"", True),
        ("accept hosts = 10.0.0.0/8", b"", True),
        ("accept hosts = *.example", b"", True),
        ("accept hosts = 192.168.0.0/16", b"", False),
        ("accept recipients = bob@a.test", b"", True),
        ("accept senders = :", b"", True),
        ("accept message = first\n message = last", b"last", True),
        ("# a comment\n\naccept \\\n   message = joi\\\n  ned", b"joined", True),
        ("accept endpass\n condition = 0", b"", False),
        ("accept condition = 0\n endpass\naccept message = next", b"next", True),
        ("accept continue = ${acl{x}}", None, None),
    ],
)
def test_verbs_conditions_and_messages(text: str, value: bytes | None, holds: bool | None) -> None:
    variables: dict[str, Any] = {
        "domain": b"A.Test",
        "local_part": b"bob",
        "host": b"mx.example",
        "host_address": b"10.1.2.3",
    }
    found, _, _ = _run(text, **variables)
    if value is None:
        assert isinstance(found, ExpandError)
        return
    assert found == value
    answer, _, _ = _run(text, "${if acl{{a}{one}{two}}{yes $value}{no $value}}", **variables)
    assert answer == (b"yes " if holds else b"no ") + value


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("defer", ForcedFailure, 'DEFER from acl "a"'),
        ("accept condition = perhaps", ForcedFailure, 'DEFER from acl "a"'),
        ("accept condition = ${lookup pgsql{q}}", ForcedFailure, 'DEFER from acl "a"'),
        ("drop", ExpandError, 'FAIL_DROP from acl "a"'),
        ("discard", ExpandError, 'DISCARD from acl "a"'),
        ("accept condition = ${eval:x}", ExpandError, 'ERROR from acl "a"'),
        ("accept acl = nosuch", ExpandError, 'ERROR from acl "a"'),
    ],
)
def test_other_outcomes_are_failures(text: str, kind: type[ExpandError], message: str) -> None:
    error, _, _ = _run(text)
    assert type(error) is kind
    assert error.message == message


def test_an_unknown_name_is_an_error_and_an_empty_one_denies() -> None:
    error, _, _ = _run("accept", "${acl{nosuch}}")
    assert error.message == 'ERROR from acl "nosuch"'
    assert _run("accept", "${if acl{{}}{y}{n}}")[0] == b"n"


def test_a_forced_failure_leaves_its_condition_out() -> None:
    """A-4"""
    assert _run("accept condition = ${if eq{a}{b}{x}fail}\n message = yes")[0] == b"yes"
    assert _run("accept message = ${if eq{a}{b}{x}fail}")[0] == b""


def test_acls_call_each_other_with_arguments_of_their_own() -> None:
    acls = {
        "a": 'accept acl = b $acl_arg2 "two words" \n message = $acl_arg1 $acl_narg',
        "b": "accept condition = ${if eq{$acl_arg1,$acl_arg2,$acl_narg}{two,two words,2}}\n message = inner",
    }
    assert _run(acls)[0] == b"one 2"
    acls["a"] = "accept acl = b two"
    assert _run(acls)[0] == b""


def test_a_message_of_a_nested_acl_that_denies_is_handed_on() -> None:
    acls = {"a": "require acl = b\naccept", "b": "deny message = from within"}
    assert _run(acls)[0] == b"from within"


def test_nesting_has_a_limit() -> None:
    error, _, scope = _run("accept acl = a")
    assert error.message == 'ERROR from acl "a"'
    assert any("nested too deep" in note for note in getattr(error, "__notes__", ["nested too deep"]))
    assert scope.acl_level == 0
    assert scope.acl_args == ()


def test_set_and_logwrite() -> None:
    text = (
        "accept set acl_m_x = $acl_arg1!\n set acl_c9 = conn\n logwrite = main $acl_m_x\n"
        "       logwrite = :panic,main: both\\nlines\n logwrite = :reject:\n message = $acl_m_x$acl_c9"
    )
    value, log, scope = _run(text)
    assert value == b"one!conn"
    assert log == [(b"main one!", ["main"]), (b"both\\012lines", ["main", "panic"])]
    assert scope.acl_m["acl_m_x"] == b"one!"
    assert scope.acl_c["acl_c9"] == b"conn"


def test_what_stands_behind_a_false_condition_is_not_done() -> None:
    value, log, _ = _run("accept condition = 0\n logwrite = not reached\n set acl_m_x = 1\naccept message = [$acl_m_x]")
    assert value == b"[]"
    assert log == []


def test_a_message_that_cannot_be_expanded_is_logged_and_left_out() -> None:
    value, log, _ = _run("accept message = ${eval:x}")
    assert value == b""
    assert log == [
        (
            b'failed to expand ACL message "${eval:x}": error in expression evaluation: expecting number or opening '
            b'parenthesis (after processing "")',
            ["main", "panic"],
        )
    ]


@pytest.mark.parametrize(
    ("text", "message", "column"),
    [
        ("nonsense", 'unknown ACL verb "nonsense"', 0),
        ("accept nonsense = x", "unknown ACL condition/modifier", 7),
        ("accept delay = 5s", '"delay" has no meaning outside an SMTP session', 7),
        ("accept condition", '"=" missing after ACL "condition" condition', 16),
        ("accept !message = x", 'negation is not allowed with "message"', 7),
        ("accept set foo = x", 'must start "acl_c" or "acl_m"', 11),
        ("accept set acl_mx = x", "digit or underscore must follow", 11),
        ("accept message = $nosuch", "unknown variable name", 24),
        ("accept domains = ^(", "regular expression error", 17),
        ("accept domains = +nosuch", "unknown named domain list", 17),
        ("deny endpass", '"endpass" is not allowed with "deny"', 5),
        ("accept logwrite = :nosuch: x", 'unknown log name "nosuch"', 18),
        ("accept\n  message = ok\n  condition = ${lc:", "missing } at end of string", 41),
    ],
)
def test_a_mistake_is_a_configuration_error_with_its_place(text: str, message: str, column: int) -> None:
    with pytest.raises(ConfigError) as caught:
        Acls.compile({"a": text}, options=ExpandOptions(lists=NamedLists()))
    assert message in caught.value.message
    assert caught.value.key == "acls.a"
    assert caught.value.column == column


_STRICT = ["$acl_m_none", "$acl_c0", "$r_none", "${acl{a}}$acl_m_set", "${acl{a}}$acl_m_none"]


@pytest.mark.parametrize("is_strict", [True, False])
def test_a_variable_that_nothing_has_set_is_empty_or_an_error(
    shared_exim_be: Callable[..., EximOracle], is_strict: bool
) -> None:
    """X-17, beside a real Exim."""
    acl = "accept set acl_m_set = there"
    option = "strict_acl_vars = true\n" if is_strict else ""
    theirs = shared_exim_be(f"{option}acl_not_smtp = a\nbegin acl\na:\n  {acl}\n").expand(_STRICT)
    for text, exim in zip(_STRICT, theirs, strict=True):
        scope = Scope({}, acls=Acls.compile({"a": acl}), strict_acl_vars=is_strict)
        try:
            ours = bytes(compile_text(text).evaluate(scope))
        except ExpandError as error:
            ours = f"Failed: {error.message}".encode()
        assert ours == exim, text
    assert theirs[0] == (b'Failed: unknown variable name "acl_m_none" (strict_acl_vars is set)' if is_strict else b"")
