"""Recipients as a stream: every row is a recipient or a bad row with its line, however the octets come."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.compose import BadRow, Format, Recipient, read_recipients
from engine.compose.recipients import MAX_FIELD_CHARACTERS, MAX_JSON_DEPTH, MAX_ROW_OCTETS
from engine.errors import DataError

Row = Recipient | BadRow


def read(octets: bytes, format: Format | None = None) -> list[Row]:
    """The rows, after they were read whole, byte by byte and from a file, with the same result."""
    whole = list(read_recipients([octets], format))
    single = list(read_recipients((octets[at : at + 1] for at in range(len(octets))), format))
    from_file = list(read_recipients(io.BytesIO(octets), format))
    assert whole == single == from_file
    return whole


def refused(octets: bytes, format: Format | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        read(octets, format)
    return caught.value


# CSV


def test_csv() -> None:
    octets = b'email,name,city\nbob@example.org,Bob,Bonn\r\nann@EXAMPLE.org,"Ann, Dr.",\n\n   \nlast@example.org,,x'
    assert read(octets) == [
        Recipient("bob@example.org", {"name": "Bob", "city": "Bonn"}),
        Recipient("ann@example.org", {"name": "Ann, Dr.", "city": ""}),
        Recipient("last@example.org", {"name": "", "city": "x"}),
    ]
    reader = read_recipients([octets])
    assert reader.format is Format.CSV
    assert reader.columns == frozenset({"name", "city"})


@pytest.mark.parametrize("name", ["email", "Email", "EMAIL", " email ", '"email"', "\ufeffEmail"])
def test_the_column_email_in_any_case(name: str) -> None:
    assert read(f"x,{name}\n1,a@b\n".encode() if "\ufeff" not in name else f"{name},x\na@b,1\n".encode()) == [
        Recipient("a@b", {"x": "1"})
    ]


def test_only_addresses_have_no_merge_data() -> None:
    assert read(b"email\na@b\n") == [Recipient("a@b", None)]


def test_quoted_fields() -> None:
    octets = b'email,a\nx@y,"say ""hi"""\nx@y,"line\nbreak, and\r\nanother"\nx@y,in"side\n"z@y",""\n'
    assert read(octets) == [
        Recipient("x@y", {"a": 'say "hi"'}),
        Recipient("x@y", {"a": "line\nbreak, and\nanother"}),
        Recipient("x@y", {"a": 'in"side'}),
        Recipient("z@y", {"a": ""}),
    ]


def test_bad_rows_have_their_line_also_after_quoted_line_breaks() -> None:
    octets = (
        b'email,a\n"x@y","1\n2\n3"\nbad,1\nx@y\nx@y,1,2\nx@y,"1\n2",3\n\nx@y,"a"b\nx@y,\xff\nx@y,a\0b\n,1\nx@y,"open\n'
    )
    assert [row if isinstance(row, Recipient) else (row.line, row.text) for row in read(octets)] == [
        Recipient("x@y", {"a": "1\n2\n3"}),
        (5, "bad,1"),
        (6, "x@y"),
        (7, "x@y,1,2"),
        (8, 'x@y,"1\n2",3'),
        (11, 'x@y,"a"b'),
        (12, "x@y,\\xff"),
        (13, "x@y,a\0b"),
        (14, ",1"),
        (15, 'x@y,"open'),
    ]
    reasons = [row.reason for row in read(octets) if isinstance(row, BadRow)]
    for reason, words in zip(
        reasons,
        ["no @", "1 fields, the header line has 2", "3 fields", "3 fields", "comma", "UTF-8", "NUL", "no @", "closed"],
        strict=True,
    ):
        assert words in reason


@pytest.mark.parametrize(
    ("header", "reason", "format"),
    [
        (b"email,a,a\n", "two columns are named 'a'", None),
        (b"email,Email\n", "two columns are named 'Email'", None),
        (b"email,a,\n", "column 3 has no name", None),
        (b"email,,a\n", "column 2 has no name", None),
        (b"mail,name\n", "no column `email`", None),
        (b"email;name\nx@y;z\n", "semicolons", Format.CSV),
        (b"name\temail\nx@y\tz\n", "tabs", Format.CSV),
        (b"\xff\xfee\0m\0a\0i\0l\0", "UTF-16", None),
        (b"", "empty", Format.CSV),
        (b"\n\n", "empty", Format.CSV),
        (b"email,\xff\n", "UTF-8", Format.CSV),
        (b"email,a\0\n", "NUL", Format.CSV),
        (b'email,"a\n', "cannot be read", Format.CSV),
        (b"email," + b"a" * 70_000 + b"\n", "65,536", None),
        (b"a@b,name\n", "no column `email`", Format.CSV),
    ],
)
def test_a_header_line_that_cannot_be_used(header: bytes, reason: str, format: Format | None) -> None:
    error = refused(header, format)
    assert reason in error.message


def test_the_header_line_may_come_after_blank_lines() -> None:
    assert read(b"\n \nemail,a\nx,1\n") == [BadRow(4, "address 'x' has no @", "x,1")]
    assert refused(b"\nmail\n").line == 2


def test_lines_and_fields_that_are_too_long_lose_no_other_row() -> None:
    long = b"w" * (MAX_ROW_OCTETS + 10)
    octets = b"email,a\nx@y,1\nx@y," + long + b"\r\nx@y,2\n"
    for size in (7, 5000, len(octets)):
        chunks = (octets[at : at + size] for at in range(0, len(octets), size))
        first, bad, last = read_recipients(chunks)
        assert (first, last) == (Recipient("x@y", {"a": "1"}), Recipient("x@y", {"a": "2"}))
        assert isinstance(bad, BadRow)
        assert (bad.line, bad.reason) == (3, "the line has more than 262,144 octets")
        assert len(bad.text) == MAX_ROW_OCTETS
    (bad,) = read_recipients([b"email,a\nx@y,"] + [b"w" * 1000] * 2000)
    assert isinstance(bad, BadRow)
    (bad,) = read_recipients([b'email,a\nx@y,"' + b"w" * (MAX_FIELD_CHARACTERS + 1) + b'"\n'])
    assert isinstance(bad, BadRow)
    assert "131,072 characters" in bad.reason


def test_a_quote_that_is_never_closed_keeps_all_it_swallowed() -> None:
    rows = [b"x@y,line %d of those that the quote takes in\n" % number for number in range(20_000)]
    octets = b'email,a\nx@y,"open\n' + b"".join(rows)
    found = list(read_recipients([octets]))
    bad = [row for row in found if isinstance(row, BadRow)]
    assert bad[0].line == 2
    assert "not closed" in bad[0].reason or "goes on" in bad[0].reason
    swallowed = sum(row.text.count("\n") for row in bad)
    assert swallowed + len(found) - len(bad) == len(rows)
    assert all(len(row.text) <= MAX_ROW_OCTETS + 1000 for row in bad)


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=20)


@given(st.lists(st.tuples(cells, cells), max_size=8), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_pythons_csv_writes_is_read_back(rows: list[tuple[str, str]], quoting: int) -> None:
    file = io.StringIO()
    writer = csv.writer(file, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["a", "Email", "b c"])
    for a, b in rows:
        writer.writerow([a, "x@y.example", b])
    assert read(file.getvalue().encode()) == [Recipient("x@y.example", {"a": a, "b c": b}) for a, b in rows]


# JSON lines


def test_json_lines() -> None:
    octets = b'{"email": "a@b", "n": 1, "l": [1, {"x": null}], "t": true}\n\n {"EMAIL":"c@D"}\n'
    assert read(octets) == [Recipient("a@b", {"n": 1, "l": [1, {"x": None}], "t": True}), Recipient("c@d", None)]
    reader = read_recipients([octets])
    assert reader.format is Format.JSON_LINES
    assert reader.columns is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"email": "a"}', "no @"),
        (b'{"email": 5}', "no text"),
        (b'{"email": null}', "no text"),
        (b'{"mail": "a@b"}', "no key `email`"),
        (b'{"email": "a@b", "Email": "c@d"}', "two keys"),
        (b'{"email": "a@b", "x": 1, "x": 2}', "twice"),
        (b'{"email": "a@b", "x": {"y": 1, "y": 2}}', "twice"),
        (b'{"email": "a@b"', "not JSON"),
        (b'{"email": "a@b"} x', "not JSON"),
        (b'["a@b"]', "no JSON object"),
        (b'"a@b"', "no JSON object"),
        (b'{"email": "a@b", "x": NaN}', "NaN"),
        (b'{"email": "a@b", "x": -Infinity}', "-Infinity"),
        (b'{"email": "a@b", "x": 18446744073709551616}', "64 bits"),
        (b'{"email": "a@b", "x": -9223372036854775809}', "64 bits"),
        (b'{"email": "a@b", "x": ' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"email": "a@b", "x": ' + b"[" * 100 + b"]" * 100 + b"}", "64 deep"),
        (b'{"email": "a@b", "x": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "deep"),
        (b'{"email": "a@b", "x": "\\ud800"}', "surrogate"),
        (b'{"email": "a@b", "\\udc00": 1}', "surrogate"),
        (b'{"email": "a@b", "x": "\xff"}', "UTF-8"),
        (b'{"email": "a@b", "x": "\0"}', "NUL"),
        (b'{"email": "a@b", "x": "' + b"w" * MAX_ROW_OCTETS + b'"}', "octets"),
    ],
)
def test_a_json_line_that_cannot_be_used(line: bytes, reason: str) -> None:
    first, bad, last = read_recipients([b'{"email": "x@y"}\n' + line + b'\n{"email": "z@y"}'])
    assert (first, last) == (Recipient("x@y"), Recipient("z@y"))
    assert isinstance(bad, BadRow)
    assert bad.line == 2
    assert reason in bad.reason


@pytest.mark.parametrize("number", [0, -1, 2**64 - 1, -(2**63), 10**18])
def test_integers_that_the_queue_can_hold(number: int) -> None:
    assert read(b'{"email": "a@b", "x": %d}' % number) == [Recipient("a@b", {"x": number})]


def test_json_up_to_the_depth() -> None:
    value: object = 1
    for _ in range(MAX_JSON_DEPTH):
        value = [value]
    assert read(json.dumps({"email": "a@b", "x": value}).encode()) == [Recipient("a@b", {"x": value})]


def test_a_surrogate_pair_is_a_character() -> None:
    assert read(b'{"email": "a@b", "x": "\\ud83d\\ude00"}') == [Recipient("a@b", {"x": "\U0001f600"})]


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False)
    )
    | st.text(st.characters(codec="utf-8"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), JSON, max_size=4), st.booleans())
def test_what_pythons_json_writes_is_read_back(data: dict[str, object], ascii_only: bool) -> None:
    data = {key: value for key, value in data.items() if key.casefold() != "email"}
    line = json.dumps({"email": "a@b", **data}, ensure_ascii=ascii_only)
    assert read(line.encode()) == [Recipient("a@b", data or None)]


# plain addresses


def test_plain_addresses() -> None:
    octets = "a@b\r\n  c@D  \n\nnobody\njörg@bücher.example\n#x@y".encode()
    assert read(octets) == [
        Recipient("a@b"),
        Recipient("c@d"),
        BadRow(4, "address 'nobody' has no @", "nobody"),
        Recipient("jörg@xn--bcher-kva.example"),
        Recipient("#x@y"),
    ]
    assert read_recipients([octets]).format is Format.ADDRESSES
    assert read_recipients([octets]).columns == frozenset()


def test_needs_smtputf8() -> None:
    assert Recipient("jörg@b").needs_smtputf8
    assert not Recipient("j@xn--bcher-kva.example").needs_smtputf8


@pytest.mark.parametrize(
    ("octets", "format"),
    [
        (b"a@b\n", Format.ADDRESSES),
        (b"", Format.ADDRESSES),
        (b"\n\n", Format.ADDRESSES),
        (b"\xff", Format.ADDRESSES),
        (b"email\n", Format.CSV),
        (b"name , E-Mail, EMAIL\n", Format.CSV),
        (b'"email","x"\n', Format.CSV),
        (b' {"email": "a@b"}', Format.JSON_LINES),
        (b"email@example.org\n", Format.ADDRESSES),
        (b"a@b,email\n", Format.CSV),
    ],
)
def test_the_format_is_told_by_the_first_line(octets: bytes, format: Format) -> None:
    assert read_recipients([octets]).format is format


def test_a_format_that_is_given_is_taken() -> None:
    assert isinstance(read(b"email,a\n", Format.ADDRESSES)[0], BadRow)
    assert isinstance(read(b"a@b\n", Format.JSON_LINES)[0], BadRow)
    assert "email" in refused(b"a@b\n", Format.CSV).message


# anything


@given(st.binary(max_size=200), st.sampled_from([None, *Format]))
@example(b"\xef\xbb", None)
@example(b"\xef\xbb\xbf", None)
@example(b"\n", None)
@example(b'email\n"', None)
def test_any_octets_end_in_rows_or_one_error(octets: bytes, format: Format | None) -> None:
    try:
        rows = read(octets, format)
    except DataError:
        return
    assert all(isinstance(row, Recipient) or row.reason for row in rows)


@given(
    st.lists(
        st.sampled_from([b"x@y", b",", b'"', b"\n", b"\r\n", b"\r", b"a", b"\0", b"\xff", b" ", "ü".encode()]),
        max_size=30,
    )
)
def test_any_csv_loses_no_octet(tokens: list[bytes]) -> None:
    octets = b"".join(tokens)
    rows = read(b"email,a\n" + octets, Format.CSV)
    last = 1
    for row in rows:
        if isinstance(row, BadRow):
            assert last < row.line
            last = row.line
            assert row.text.split("\n")[0].strip() or '"' in row.text
    # every address that stands in the input is in a row of one of both kinds
    seen = sum(1 for row in rows if isinstance(row, Recipient))
    seen += sum(row.text.count("x@y") for row in rows if isinstance(row, BadRow))
    merged = "".join(str(row.merge) for row in rows if isinstance(row, Recipient))
    assert seen + merged.count("x@y") >= octets.count(b"x@y")


def test_memory_is_flat() -> None:
    def chunks(count: int) -> Iterator[bytes]:
        yield b"email,name,city\n"
        for number in range(count // 100):
            yield b"".join(b'user%d@example.org,Name %d,"Some, City"\n' % (number, at) for at in range(100))

    tracemalloc.start()
    try:
        peaks = []
        for count in (2_000, 12_000):
            tracemalloc.reset_peak()
            assert sum(1 for _ in read_recipients(chunks(count))) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000
