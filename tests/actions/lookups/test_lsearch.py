"""lsearch and its relatives: the lines of a file, patterns, networks."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupRegistry, lsearch
from engine.actions.lookups.driver import Failure
from engine.actions.lookups.lsearch import Entry, read_entries
from engine.expand import Scope
from fakes.searching import failure, look

FILE = r"""# a comment
plain: data
NoColon data: with a colon
two  :  spaced
"quoted key" : in quotes
"es\"c\x41\101\tx": escaped
"no end: of it
cont: first
  second
	third
# ends it
 belongs to nothing
empty:
bare
dup: one
dup: two
after: x

 an empty line ends it
late:
 only continued
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "list"
    file.write_text(FILE)
    return str(file)


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("plain", "data"),
        ("PLAIN", "data"),
        ("nocolon", "data: with a colon"),
        ("two", "spaced"),
        ("quoted key", "in quotes"),
        ('es"cAA\tx', "escaped"),
        ("no end: of it", ""),
        ("cont", "first second third"),
        ("empty", ""),
        ("bare", ""),
        ("dup", "one"),
        ("after", "x"),
        ("late", " only continued"),
        ("belongs", None),
        ("#", None),
        ("absent", None),
    ],
)
def test_lsearch(registry: LookupRegistry, path: str, key: str, data: str | None) -> None:
    assert look(registry, "lsearch", path, key) == (None if data is None else data.encode())


def test_ret_full_is_the_line_with_its_key_as_it_is_meant(registry: LookupRegistry, path: str) -> None:
    assert look(registry, "lsearch,ret=full", path, "quoted key") == b"quoted key : in quotes"
    assert look(registry, "lsearch,ret=full", path, "two") == b"two  :  spaced"
    assert look(registry, "lsearch,ret=full", path, "cont") == b"cont: first second third"
    assert look(registry, "lsearch,ret=full", path, "late") == b"late: only continued"


def test_a_missing_file(registry: LookupRegistry) -> None:
    message = failure(registry, "lsearch", "/nonexistent/list", "a")
    assert message == "failed to open /nonexistent/list for linear search: No such file or directory"


def test_octets_are_octets(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_bytes(b"\xff\xfe: \x80\x00\xe4\nCRLF: x\r\n")
    assert look(registry, "lsearch", str(file), b"\xff\xfe") == b"\x80\x00\xe4"
    assert look(registry, "lsearch", str(file), b"crlf") == b"x"


def test_a_large_file_is_read_through(
    registry: LookupRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lsearch, "MAX_KEPT_OCTETS", 1000)
    file = tmp_path / "list"
    file.write_text("".join(f"Key{number}: {number}\n" for number in range(1000)) + "key7: again\n")
    assert look(registry, "lsearch", str(file), "key999") == b"999"
    assert look(registry, "lsearch", str(file), "KEY7") == b"7"
    assert look(registry, "lsearch", str(file), "none") is None
    assert "too large" in failure(registry, "nwildlsearch", str(file), "key7")


def test_a_line_and_an_entry_are_bounded() -> None:
    with pytest.raises(Failure, match="a line of more than 1048576 octets"):
        list(read_entries(io.BytesIO(b"x" * (1 << 20) + b"y: z\n")))
    with pytest.raises(Failure, match="an item of more than 1048576 octets"):
        list(read_entries(io.BytesIO(b"key:\n" + (b" " + b"x" * 1000 + b"\n") * 1100)))


@given(st.binary(max_size=200))
def test_any_octets_can_be_read(octets: bytes) -> None:
    for entry in read_entries(io.BytesIO(octets)):
        assert entry.line == entry.key + entry.gap + entry.data


_KEYS = st.text(st.characters(codec="latin-1", exclude_characters="\n\r\v\f\0"), min_size=1, max_size=20)
_DATA = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20).map(str.strip)


@given(st.lists(st.tuples(_KEYS, _DATA), max_size=8))
def test_what_is_written_in_quotes_is_read_back(pairs: list[tuple[str, str]]) -> None:
    text = ""
    for key, data in pairs:
        escaped = key.replace("\\", "\\\\").replace('"', '\\"')
        text += f'"{escaped}": {data}\n'
    read = [(entry.key, entry.data) for entry in read_entries(io.BytesIO(text.encode("latin-1")))]
    # a colon that begins the data is the first one after the key
    assert read == [(key.encode("latin-1"), data.encode()) for key, data in pairs]


def test_an_item_is_a_value() -> None:
    assert list(read_entries(io.BytesIO(b"a: b"))) == [Entry(b"a", b": ", b"b")]


# --- wildlsearch and nwildlsearch -------------------------------------------------------------------------------------

WILD = r"""exact: e
*.tail.com: tail
^[abc]+$: unquoted
"^re\\d+$": re
!*neg: not neg
never: reached
"""


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("EXACT", "e"),
        ("x.tail.com", "tail"),
        (".TAIL.com", "tail"),
        ("cab", "unquoted"),
        ("RE12", "re"),
        ("anything", "not neg"),
        ("never", "not neg"),
        ("xneg", None),
    ],
)
def test_nwildlsearch(registry: LookupRegistry, tmp_path: Path, key: str, data: str | None) -> None:
    file = tmp_path / "wild"
    file.write_text(WILD)
    assert look(registry, "nwildlsearch", str(file), key) == (None if data is None else data.encode())


def test_wildlsearch_expands_its_keys(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "wild"
    file.write_text(
        r'"${uc:never}x": constant' + "\n" + r"*.$primary_hostname: own" + "\n" + r'"^\\N[0-9]+$\\N": number' + "\n"
    )
    scope = Scope({"primary_hostname": b"Mail.Example"})
    assert look(registry, "wildlsearch", str(file), "neverx", scope=scope) == b"constant"
    assert look(registry, "wildlsearch", str(file), "a.mail.example", scope=scope) == b"own"
    assert look(registry, "wildlsearch", str(file), "123", scope=scope) == b"number"
    other = Scope({"primary_hostname": b"other"})
    assert look(registry, "wildlsearch", str(file), "a.mail.example", scope=other) is None
    assert look(registry, "nwildlsearch", str(file), "a.mail.example") is None
    assert look(registry, "nwildlsearch", str(file), "x.$primary_hostname") == b"own"


def test_a_lookup_inside_a_wildlsearch_file(registry: LookupRegistry, tmp_path: Path) -> None:
    """The registry is entered a second time by the thread that has it."""
    (tmp_path / "inner").write_text("name: found.example\n")
    file = tmp_path / "wild"
    file.write_text(f'"${{lookup{{name}}lsearch{{{tmp_path}/inner}}}}": x\n')
    assert look(registry, "wildlsearch", str(file), "found.example", scope=Scope(lookups=registry)) == b"x"


def test_a_bad_pattern_defers_only_a_search_that_comes_to_it(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "wild"
    file.write_text('first: x\n"^bad(": y\n')
    assert look(registry, "nwildlsearch", str(file), "first") == b"x"
    message = failure(registry, "nwildlsearch", str(file), "second")
    assert message.startswith('lookup of "second" gave DEFER: regular expression error in "^bad(": ')
    file.write_text('first: x\n"${bad": y\n')
    assert look(registry, "wildlsearch", str(file), "first", scope=Scope()) == b"x"
    message = failure(registry, "wildlsearch", str(file), "second", scope=Scope())
    assert message.startswith('lookup of "second" gave DEFER: failed to expand "${bad" while checking a list: ')


def test_a_pattern_that_runs_away_is_stopped(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "wild"
    file.write_text('"^(a|aa)+$": x\n')
    message = failure(registry, "nwildlsearch", str(file), "a" * 60 + "b")
    assert "gave DEFER: regular expression '^(a|aa)+$' gave up: " in message


# --- iplsearch --------------------------------------------------------------------------------------------------------

NETWORKS = """10.1.2.3: host
10.0.0.0/8: net
"2001:db8::/32": six
*: star
not-an-address: x
0.0.0.0/0: rest
"""


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("10.1.2.3", "host"),
        ("10.9.9.9", "net"),
        ("::ffff:10.9.9.9", "net"),
        ("2001:DB8:5::1", "six"),
        ("192.0.2.1", "rest"),
        ("fe80::1", None),
        ("*", "star"),
    ],
)
def test_iplsearch(registry: LookupRegistry, tmp_path: Path, key: str, data: str | None) -> None:
    file = tmp_path / "networks"
    file.write_text(NETWORKS)
    assert look(registry, "iplsearch", str(file), key) == (None if data is None else data.encode())


def test_iplsearch_wants_an_address(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "networks"
    file.write_text(NETWORKS)
    assert failure(registry, "iplsearch", str(file), "10.0.0.0/8") == (
        'lookup of "10.0.0.0/8" gave DEFER: "10.0.0.0/8" is not a valid iplsearch key (an IP address, with optional'
        " CIDR mask, is wanted): in a host list, use net-iplsearch as the search type"
    )
    assert look(registry, "iplsearch*", str(file), "fe80::1") == b"star"
