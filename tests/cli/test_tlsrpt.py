"""`outrider tlsrpt`: what it says when there is nothing to say, and when it is asked wrongly."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine.cli.main import cli
from engine.logs.tlsrpt import TlsrptLog
from engine.policy.tls_report import PolicyResult, PolicyType, SessionReport

#: 2026-11-24 in UTC
AT = 1_795_521_600.0


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "outrider.toml"
    path.write_text(
        f'[main]\nprimary_hostname = "client.example"\n[tlsrpt]\ndirectory = "{tmp_path}/results"\n'
        'organization = "Client"\ncontact = "tls@client.example"\n'
    )
    return str(path)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["tlsrpt", *arguments])
    return done.exit_code, done.output


def test_a_report(tmp_path: Path, config: str) -> None:
    TlsrptLog(f"{tmp_path}/results").record(
        SessionReport(
            AT,
            "example.org",
            "v=TLSRPTv1; rua=mailto:a@b.example,https://b.example/",
            (PolicyResult(PolicyType.NONE, "example.org"),),
        )
    )
    code, output = run("--config", config, "--day", "2026-11-24", "--output", str(tmp_path / "out"))
    assert code == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.name.startswith("Client!example.org!1795478400!1795564799!")
    assert output.strip().endswith("-> mailto:a@b.example, https://b.example/")
    report = json.loads(gzip.decompress(path.read_bytes()))
    assert report["contact-info"] == "tls@client.example"
    octets = path.read_bytes()
    run("--config", config, "--day", "2026-11-24", "--output", str(tmp_path / "out"))
    assert path.read_bytes() == octets


def test_a_day_without_results(config: str) -> None:
    assert run("--config", config, "--day", "2026-11-23") == (
        0,
        "no domain that asks for reports had mail on 2026-11-23\n",
    )
    assert run("--config", config, "--json") == (0, "[]\n")


def test_wrong_questions(tmp_path: Path, config: str) -> None:
    code, _ = run("--config", config, "--day", "yesterday")
    assert code != 0
    other = tmp_path / "other.toml"
    other.write_text("")
    code, output = run("--config", str(other))
    assert code == 78
    assert "tlsrpt.directory" in output
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "tlsrpt-2026-11-24.jsonl").mkdir()
    code, output = run("--config", config, "--day", "2026-11-24")
    assert code == 65
    assert "cannot be read" in output
