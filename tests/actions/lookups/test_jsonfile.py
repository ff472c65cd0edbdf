"""json: members of a document in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupRegistry, jsonfile
from fakes.searching import failure, look

DOCUMENT = r"""{"name": "a \"b\" \u00e4", "number": 1.50e+2, "large": 123456789012345678901234567890, "yes": true,
"no": null, "list": [10, "x", [1, {"deep": "down"}]], "object": {"b": [1, "\u00fc"], "a": {}}, "": "empty",
"c:d": "colon", "lone": "\ud800", "7": "seven"}"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "x.json"
    file.write_text(DOCUMENT)
    return str(file)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 'a "b" ä'),
        ("number", "1.50e+2"),
        ("large", "123456789012345678901234567890"),
        ("yes", "true"),
        ("no", "null"),
        ("list", '[10, "x", [1, {"deep": "down"}]]'),
        ("list:0", "10"),
        ("list:1", "x"),
        ("list : 2 : 1 : deep", "down"),
        ("<, list,2,1,deep", "down"),
        ("object", '{"b": [1, "ü"], "a": {}}'),
        ("c::d", "colon"),
        ("7", "seven"),
        ("lone", r"\ud800"),
        ("list:3", None),
        ("list:-1", None),
        ("list:²", None),
        ("list:99999999999999999999", None),
        ("list:x", None),
        ("name:0", None),
        ("Name", None),
        ("no:x", None),
    ],
)
def test_members(registry: LookupRegistry, path: str, key: str, value: str | None) -> None:
    assert look(registry, "json", path, key) == (None if value is None else value.encode())


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": NaN}', b"[1,]", b"\xff\xfe", b"\x00", b"[" * 100_000])
def test_what_is_no_document_is_a_deferral(registry: LookupRegistry, tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text)
    assert failure(registry, "json", str(file), "a").startswith('lookup of "a" gave DEFER: json: ')


def test_depth_that_can_be_read_but_not_written(registry: LookupRegistry, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for depth in (100, 700, 900, 990, 5_000):
        file.write_text('{"a": ' + "[" * depth + "]" * depth + "}")
        answer = failure(registry, "json", str(file), "a")
        assert answer.startswith(("found b'[", 'lookup of "a" gave DEFER: json: maximum recursion depth'))


def test_a_file_is_bounded(registry: LookupRegistry, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonfile, "MAX_KEPT_OCTETS", 10)
    assert failure(registry, "json", path, "name") == "a file of more than 10 octets is too large for a json search"


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(_JSON)
def test_what_comes_out_is_the_same_document(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    file = tmp_path_factory.mktemp("json") / "x.json"
    file.write_text(json.dumps({"v": value}))
    registry = LookupRegistry()
    found = look(registry, "json", str(file), "v")
    assert found is not None
    assert (found.decode() if isinstance(value, str) else json.loads(found)) == value
