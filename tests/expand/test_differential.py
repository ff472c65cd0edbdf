"""`outrider expand` against the real `exim -be`, line for line: values and `Failed:` texts (X-1 to X-25).

The corpus is written by hand and made by products; more comes from a grammar.  Where the two differ there is a rule in
reference/expand_deviations.py with a reason.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from engine.cli.expand import Session
from engine.config import loads
from fakes.patience import PATIENCE_S
from reference import expand_deviations, expand_grammar, expand_products
from reference.expand_oracle import EXIM_LISTS, OUR_LISTS, alone, answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fakes.peer_exim import EximOracle
    from reference.expand_deviations import Rule

_CORPUS = Path(__file__).parent / "corpus"
_MARK = b"=-=-mark-%d-=-="


def _corpus() -> list[bytes]:
    lines: list[str] = []
    for path in sorted(_CORPUS.glob("*.txt")):
        read = [line for line in path.read_text().split("\n") if line.strip()]
        if path.stem == "mailboxes":
            quoted = [line.replace("\\", "\\\\").replace("{", "\\{").replace("}", "\\}") for line in read]
            operators = ("address", "addresses", "domain", "local_part")
            read = [f"${{{operator}:{line}}}" for line in quoted for operator in operators]
        lines += read
    lines += [*expand_products.operators(), *expand_products.pieces(), *expand_products.conditions()]
    octets = [line.rstrip().encode() for line in dict.fromkeys(lines)]
    # `exim -be` takes a line that begins with a capital letter for a macro
    return [line for line in octets if not line.endswith(b"\\") and not line[:1].isupper()]


@pytest.fixture(scope="module")
def oracle(shared_exim_be: Callable[..., EximOracle]) -> EximOracle:
    return shared_exim_be("primary_hostname = oracle.test\n" + EXIM_LISTS)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session(loads(OUR_LISTS.encode()))
    yield session
    session.close()


_FAILED = b"Failed: "


def _ours(session: Session, line: bytes) -> bytes:
    answer = session.answer(line)
    return _FAILED + answer.error.message.encode("utf-8", "surrogateescape") if answer.error else answer.value or b""


def _by_command(lines: list[bytes], tmp_path: Path) -> list[bytes]:
    """What the command prints, all lines through one process."""
    configuration = tmp_path / "outrider.toml"
    configuration.write_text(OUR_LISTS)
    feed = b"".join(line + b"\n" + _MARK % number + b"\n" for number, line in enumerate(lines))
    command = [sys.executable, "-m", "engine", "expand", "--config", str(configuration)]
    done = subprocess.run(command, input=feed, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    found = []
    rest = done.stdout
    for number in range(len(lines)):
        answer, mark, rest = rest.partition(_MARK % number + b"\n")
        assert mark, (number, lines[number], answer[-300:])
        found.append(answer.removesuffix(b"\n"))
    return found


def _show(line: bytes, exim: bytes, ours: bytes) -> str:
    return f"\n  line {line!r}\n  exim {exim!r}\n  ours {ours!r}"


def _compare(oracle: EximOracle, line: bytes, exim: bytes, ours: bytes) -> tuple[Rule | None, bytes]:
    """The rule for a difference, if there is one, and what Exim says when no other line has gone before."""
    if exim == ours:
        return None, exim
    rule = expand_deviations.reason(line, exim, ours)
    if rule is None and (exim := alone(oracle, line)) != ours:
        rule = expand_deviations.reason(line, exim, ours)
    return rule, exim


def test_the_corpus_expands_as_in_exim(oracle: EximOracle, tmp_path: Path) -> None:
    lines = _corpus()
    assert len(lines) > 2_000
    needed = set()
    wrong = []
    for line, exim, ours in zip(lines, answers(oracle, lines), _by_command(lines, tmp_path), strict=True):
        rule, exim = _compare(oracle, line, exim, ours)
        if rule is not None:
            needed.add(rule)
        elif exim != ours:
            wrong.append(_show(line, exim, ours))
    assert not wrong, f"{len(wrong)} lines differ:" + "".join(wrong[:20])
    assert [rule.reason for rule in expand_deviations.RULES if rule not in needed] == []


def _check(oracle: EximOracle, session: Session, expressions: list[str], *, by_text: bool = True) -> None:
    """Compare with Exim; where not `by_text`, one failure is as good as another."""
    # a line of more than 1000 octets is more than `exim -be` reads at once
    lines = [line for text in expressions if len(line := text.encode()) < 1000 and not text[:1].isupper()]
    for line, exim in zip(lines, answers(oracle, lines), strict=True):
        ours = _ours(session, line)
        if not by_text and exim.startswith(_FAILED) and ours.startswith(_FAILED):
            continue
        rule, exim = _compare(oracle, line, exim, ours)
        assert exim == ours or rule is not None, _show(line, exim, ours)


# a failure names its line, so there is nothing to shrink, which takes long with a server to ask
_SETTINGS = settings(
    max_examples=60,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@_SETTINGS
@given(st.lists(expand_grammar.expressions(), min_size=15, max_size=40))
@example(["${if match{ab}{(a)(b)}{${if match{cd}{(x)}{$1$2}{$1}}$1$2}{n}}"])
def test_expressions_of_the_grammar_expand_as_in_exim(
    oracle: EximOracle, session: Session, expressions: list[str]
) -> None:
    _check(oracle, session, expressions)


@_SETTINGS
@given(st.lists(expand_grammar.broken(), min_size=15, max_size=40))
def test_broken_expressions_fail_where_they_do_in_exim(
    oracle: EximOracle, session: Session, expressions: list[str]
) -> None:
    # of several things that are wrong the two may find another one first; the corpus has the texts
    _check(oracle, session, expressions, by_text=False)
