"""The composition root: what is compiled is what is used."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from engine import app
from engine.actions.lookups.registry import LookupRegistry
from engine.config import loads
from engine.delivery.progress import Progress
from engine.errors import ConfigError
from engine.expand import compile_text
from engine.queue.sqlite import SqliteStore
from fakes.engine_world import RecordingLog

CONFIG = """
[main]
primary_hostname = "client.example"
queue = "sqlite://{directory}/queue.db"
[acls]
is_ours = '''
accept condition = ${{if eq{{$acl_arg1}}{{ours.example}}}}
       logwrite = seen: $acl_arg1
'''
[lists.domainlist]
ours = "ours.example"
"""


def test_expansions_of_the_engine_know_acls_lookups_and_the_host(tmp_path: Path) -> None:
    config = loads(CONFIG.format(directory=tmp_path).encode())
    log = RecordingLog()
    store = SqliteStore(str(tmp_path / "queue.db"))
    lookups = LookupRegistry()
    try:
        core = app.make_core(app.compile_config(config), store, log, lookups, Progress(), lambda: 0.0, Random(1))
        scope = core.make_scope({"domain": "ours.example"})
        program = compile_text("${if acl{{is_ours}{$domain}}{yes}{no}} $primary_hostname")
        assert program.evaluate(scope) == b"yes client.example"
        scope = core.make_scope({"domain": "other.example"})
        assert program.evaluate(scope) == b"no client.example"
        assert [fact.text for fact in log.facts] == ["seen: ours.example"]
        (tmp_path / "table").write_text("k: v\n")
        looked_up = compile_text(f"${{lookup{{k}}lsearch{{{tmp_path}/table}}}}")
        assert looked_up.evaluate(core.make_scope({})) == b"v"
    finally:
        lookups.close()
        store.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[acls]\nbad = "permit all"', "acls.bad"),
        ('[acls]\nbad = "accept condition = ${nosuch:x}"', "nosuch"),
        ('[main]\nprimary_hostname = "two words"', "main.primary_hostname"),
        ('[main]\nlog_selector = "+nosuch"', "nosuch"),
        ('[dns]\nnameservers = ["ns.example"]', "dns.nameservers"),
        ('[main]\nevent_action = "${if eq{a}{b}"', "main.event_action: column"),
        ('[main]\nevent_action = "$nosuch"', "main.event_action: column"),
        ('[transports.remote_smtp]\ndriver = "smtp"\nevent_action = "${nosuch:x}"', "remote_smtp.event_action: column"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        app.check(loads(text.encode(), "outrider.toml"))
    assert said in str(caught.value)
    assert "outrider.toml" in str(caught.value)


def test_only_options_that_do_something_have_actions() -> None:
    text = """
        [main]
        event_action = "${if eq{$event_name}{msg:complete}{x}}"
        [transports.remote_smtp]
        driver = "smtp"
        event_action = "${if eq{$event_name}{tcp:close}{x}}"
        [transports.quiet]
        driver = "smtp"
        event_action = "${if eq{$event_name}{nosuch}{x}}"
        """
    actions = app.compile_config(loads(text.encode())).actions
    assert {name: list(found) for name, found in actions.items()} == {
        "": ["msg:complete"],
        "remote_smtp": ["tcp:close"],
    }
