"""Mails as people's programs make them: with alternatives, pictures, attachments, forwarded mail and old habits."""

from __future__ import annotations

from email.message import EmailMessage
from email.policy import SMTP

import pytest

from engine.compose import Composer
from fakes.mail import CREATED_AT, MESSAGE_ID, NOW, assert_fit, leaves, parsed

PICTURE = bytes(range(256)) * 40
TEXT = "Grüße aus Zürich,\nein Satz mit Umlauten: äöü.\n" + "Ein langer Absatz ohne Umbruch. " * 60 + "\n"
HTML = "<html><body><p>Grüße</p><img src='cid:pic@x'>" + "<td>zelle</td>" * 200 + "</body></html>\n"


def newsletter(cte: str) -> EmailMessage:
    message = EmailMessage(policy=SMTP.clone(utf8=False))
    message["From"] = "Redaktion Käseblatt <redaktion@kaese.example>"
    message["To"] = "Abonnenten:;"
    message["Subject"] = "Ausgabe 7: Käse für alle – günstig, frisch und täglich neu aus der Region Zürich"
    message["List-Unsubscribe"] = "<https://kaese.example/u?id=" + "x" * 200 + ">"
    message.set_content(TEXT, cte=cte)
    message.add_alternative(HTML, subtype="html", cte="quoted-printable")
    _, html = message.iter_parts()
    html.add_related(PICTURE, "image", "png", cid="<pic@x>", filename="käse.png")
    message.add_attachment(PICTURE, maintype="application", subtype="pdf", filename="Preisliste Käse.pdf")
    return message


def forwarding() -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    message["From"] = "a@sender.example"
    message["Subject"] = "Fwd: Ausgabe 7"
    message.set_content("siehe unten\n")
    message.add_attachment(newsletter("8bit"))
    return message


BOUNCE = """\
From: MAILER-DAEMON@sender.example
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary="A1B2.1732480000/mail.sender.example"
Content-Transfer-Encoding: 8bit

This is a MIME-encapsulated message.

--A1B2.1732480000/mail.sender.example
Content-Description: Notification
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

Die Nachricht ist größer als erlaubt.

--A1B2.1732480000/mail.sender.example
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mail.sender.example

Final-Recipient: rfc822; a@b.example
Action: failed
Status: 5.3.4

--A1B2.1732480000/mail.sender.example
Content-Description: Undelivered Message Headers
Content-Type: text/rfc822-headers

From: a@sender.example
Subject: =?utf-8?q?=C3=BC?=

--A1B2.1732480000/mail.sender.example--
""".encode()


MAILS = {
    "newsletter, 8bit": newsletter("8bit").as_bytes(),
    "newsletter, base64": newsletter("base64").as_bytes(),
    "forwarding": forwarding().as_bytes(),
    "bounce": BOUNCE,
}


def octets_of(name: str, *, line_end: bytes, eightbit: bool) -> tuple[bytes, bytes]:
    source = MAILS[name].replace(b"\r\n", b"\n").replace(b"\n", line_end)
    composer = Composer.for_job(
        source, is_template=False, personalised=False, sender="", host_name="x.example", created_at=CREATED_AT
    )
    rendered = composer.compose("", {}, MESSAGE_ID, NOW).render(eightbit=eightbit, smtputf8=False)
    assert_fit(rendered, eightbit=eightbit, smtputf8=False)
    return source, rendered.content


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("eightbit", [True, False])
@pytest.mark.parametrize("name", list(MAILS))
def test_it_says_what_it_said(name: str, eightbit: bool, line_end: bytes) -> None:
    source, content = octets_of(name, line_end=line_end, eightbit=eightbit)
    assert leaves(content) == leaves(source)
    before, after = parsed(source), parsed(content)
    for key, _ in before.items():
        if key.lower() != "content-transfer-encoding":
            assert str(after[key]).split() == str(before[key]).split(), key
    names = [part.get_filename() for part in before.walk()]
    assert [part.get_filename() for part in after.walk()] == names
    assert not any(part.defects for part in after.walk())
    if not eightbit:
        said = [str(part["Content-Transfer-Encoding"]) for part in after.walk()]
        assert not {"8bit", "binary"} & set(said)


@pytest.mark.parametrize("name", ["newsletter, base64", "bounce"])
def test_with_8bitmime_nothing_is_touched_that_fits(name: str) -> None:
    """Only fields that were missing are added, before the empty line that ends the header."""
    source, content = octets_of(name, line_end=b"\r\n", eightbit=True)
    header, _, body = source.partition(b"\r\n\r\n")
    new_header, _, new_body = content.partition(b"\r\n\r\n")
    assert new_body.rstrip() == body.rstrip()
    kept = [line for line in new_header.split(b"\r\n") if not line.startswith((b"Date:", b"Message-ID:"))]
    added = {b"MIME-Version: 1.0", b"Content-Transfer-Encoding: 8bit"}
    assert [line for line in kept if line not in added] == [line for line in header.split(b"\r\n") if line not in added]


def test_a_mail_from_an_old_program() -> None:
    """No MIME, Latin-1 said in no header: refused; the same with a header that says it: sent."""
    body = "Viele Grüße\r\n".encode("latin-1")
    head = b"From: A User <user@old.example>\r\nX-Mailer: Old 1.0\r\n"
    said = head + b"Content-Type: text/plain; charset=ISO-8859-1\r\n\r\n" + body
    composer = Composer.for_job(
        said, is_template=False, personalised=True, sender="", host_name="x.example", created_at=CREATED_AT
    )
    rendered = composer.compose("bob@example.org", {}, MESSAGE_ID, NOW).render(eightbit=False, smtputf8=False)
    assert_fit(rendered, eightbit=False, smtputf8=False)
    assert leaves(rendered.content) == [("text/plain", body.strip())]
