"""OpenSMTPD as a receiver that never sends on.

Run as `smtpd -d -f FILE -P mta -P mda`.  OpenSMTPD has its paths compiled in (/var/spool/smtpd, /var/run/smtpd.sock),
so each one gets a mount namespace where these are directories of the test's; that, and OpenSMTPD itself, need root.
Relay and delivery are paused, so each accepted message stays in the queue directory: one folder a transaction with a
file ``message`` and one envelope file, ``key: value`` lines, a recipient.

Debian 12's OpenSMTPD (6.8.0p2) was written for OpenSSL 1.1 and fails every TLS handshake with OpenSSL 3 ("EVP lib"): it
keeps private keys in another process by means of an ENGINE, which OpenSSL 3 never asks for keys of its providers.  A
preloaded function, compiled here, hands it public keys in the older form that does ask; nothing else is changed.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from fakes.patience import PATIENCE_S
from fakes.peers import (
    PeerTls,
    Place,
    Process,
    Receiver,
    StoredMessage,
    crlf,
    natural_files,
    peer_path,
    require,
    split_trace,
    start_with_retries,
    wait_for_smtp,
)

_CONFIGURATION = """\
{tls}
smtp max-message-size 200M
smtp limit max-mails 1000000
smtp limit max-rcpt 100000
{extra}
listen on {host} port {port} hostname {hostname} {listen}
# nobody listens there, and paused relays do not ask
action "keep" relay host smtp://127.0.0.1:9
match from any for any action "keep"
"""

#: arguments: the place, then the command
_IN_NAMESPACE = """\
set -e
place=$1
shift
mount --bind "$place/spool" /var/spool
mount --bind "$place/lib" /var/lib
mount --bind "$place/run" "$(readlink -f /var/run)"
mount --bind "$place/hosts" "$(readlink -f /etc/hosts)"
mount --bind "$place/resolv.conf" "$(readlink -f /etc/resolv.conf)"
exec env LD_PRELOAD="$PEER_PRELOAD" "$@"
"""
_PRELOADED = 'exec env LD_PRELOAD="$PEER_PRELOAD" "$@"'


_LEGACY_KEYS = """\
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

typedef struct evp_pkey_st EVP_PKEY;
typedef struct rsa_st RSA;
typedef struct ec_key_st EC_KEY;
typedef struct x509_st X509;

EVP_PKEY *EVP_PKEY_new(void);
void EVP_PKEY_free(EVP_PKEY *);
RSA *EVP_PKEY_get1_RSA(EVP_PKEY *);
int EVP_PKEY_set1_RSA(EVP_PKEY *, RSA *);
void RSA_free(RSA *);
EC_KEY *EVP_PKEY_get1_EC_KEY(EVP_PKEY *);
int EVP_PKEY_set1_EC_KEY(EVP_PKEY *, EC_KEY *);
void EC_KEY_free(EC_KEY *);

EVP_PKEY *X509_get_pubkey(X509 *certificate)
{
    EVP_PKEY *(*next)(X509 *) = (EVP_PKEY *(*)(X509 *))dlsym(RTLD_NEXT, "X509_get_pubkey");
    EVP_PKEY *provided = next(certificate);
    EVP_PKEY *legacy = provided == NULL ? NULL : EVP_PKEY_new();
    RSA *rsa;
    EC_KEY *ec;

    if (legacy == NULL)
        return provided;
    if ((rsa = EVP_PKEY_get1_RSA(provided)) != NULL) {
        EVP_PKEY_set1_RSA(legacy, rsa);
        RSA_free(rsa);
    } else if ((ec = EVP_PKEY_get1_EC_KEY(provided)) != NULL) {
        EVP_PKEY_set1_EC_KEY(legacy, ec);
        EC_KEY_free(ec);
    } else {
        EVP_PKEY_free(legacy);
        return provided;
    }
    EVP_PKEY_free(provided);
    return legacy;
}
"""


@functools.cache
def _can_have_mount_namespace() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "--mount", "sh", "-c", "mount --bind /var/lib /var/lib"]
    return subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False).returncode == 0


class OpenSmtpd(Receiver):
    """A real OpenSMTPD; see `Receiver`.  `extra` is lines of smtpd.conf."""

    name = "opensmtpd"
    #: what does not run: by default nothing is delivered further
    paused: tuple[str, ...] = ("mta", "mda")
    complaint_marks = ("failed-command", "reason=disconnect", "reason=timeout", "reason=io-error", "warn:", "fatal")

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        hostname: str = "opensmtpd.test",
        tls: PeerTls | None = None,
        extra: str = "",
    ) -> None:
        super().__init__(host=host, port=port, hostname=hostname, tls=tls, extra=extra)
        self._binary = peer_path("opensmtpd", "usr/sbin/smtpd")
        require(os.geteuid() == 0, "OpenSMTPD runs only as root")
        require(_can_have_mount_namespace(), "OpenSMTPD needs a mount namespace of its own, which is not allowed here")
        self._place = Place(["opensmtpd", "opensmtpq"])
        self._queue = self._place.path / "spool/smtpd/queue"
        self._place.directory("spool/smtpd", mode=0o711)
        purge = self._place.directory("spool/smtpd/purge", mode=0o700)
        os.chown(purge, self._place.users["opensmtpq"].uid, 0)
        self._place.directory("lib/opensmtpd/empty", mode=0o711)
        self._place.directory("run")
        self._place.file("hosts", "127.0.0.1 localhost\n::1 localhost\n")
        self._place.file("resolv.conf", "lookup file\n")
        self._own_libraries = self._compile_legacy_keys() if tls is not None else ""
        start_with_retries(self, fixed_port=port != 0)

    @property
    def place(self) -> Place:
        return self._place

    def start(self) -> None:
        tls = listen = ""
        if self.tls is not None:
            chain = self._place.file("chain.pem", self.tls.chain_pem)
            key = self._place.file("key.pem", self.tls.key_pem, mode=0o600)
            tls = f'pki test cert "{chain}"\npki test key "{key}"'
            listen = "tls pki test"
        text = _CONFIGURATION.format(
            tls=tls, extra=self.extra, host=self.host, port=self.port, hostname=self.hostname, listen=listen
        )
        configuration = self._place.file("smtpd.conf", text, mode=0o600)
        paused = [word for agent in self.paused for word in ("-P", agent)]
        launcher = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _IN_NAMESPACE, "sh"]
        self.process = Process(
            [*launcher, self._place.path, self._binary, "-d", "-f", configuration, *paused],
            self._environment(),
            self._place.path / "output",
        )
        wait_for_smtp(self.host, self.port, self.process, "OpenSMTPD")

    def _environment(self) -> dict[str, str]:
        """What is preloaded is for OpenSMTPD alone: unshare, sh and mount belong to this machine."""
        found = dict(self._place.environment)
        preload = found.pop("LD_PRELOAD")
        return {**found, "PEER_PRELOAD": f"{preload} {self._own_libraries}".strip()}

    def control(self, *words: str) -> str:
        """What `smtpctl` prints for these words.

        Raises:
            subprocess.CalledProcessError: it failed.
        """
        assert self.process is not None
        inside = ["nsenter", "--target", str(self.process.pid), "--mount", "sh", "-c", _PRELOADED, "sh"]
        command = [*inside, str(self._binary.with_name("smtpctl")), *words]
        return subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=PATIENCE_S, check=True, cwd="/"
        ).stdout

    def _compile_legacy_keys(self) -> Path:
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
        require(compiler, "OpenSMTPD with TLS needs a C compiler")
        source = self._place.file("legacy_keys.c", _LEGACY_KEYS)
        library = source.with_suffix(".so")
        command = [*shlex.split(str(compiler)), "-O1", "-shared", "-fPIC", "-o", str(library), str(source)]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        return library

    def log_text(self) -> str:
        output = self._place.path / "output"
        return output.read_text(errors="replace") if output.exists() else ""

    def count(self) -> int:
        return sum(1 for _ in self._message_files())

    def messages(self) -> list[StoredMessage]:
        return [_read_folder(path.parent) for path in sorted(self._message_files())]

    def _message_files(self) -> list[Path]:
        return list(natural_files(self._queue, "message"))


def _read_folder(folder: Path) -> StoredMessage:
    """Read one message and its envelopes.

    Raises:
        ValueError: the folder is not of the documented format.
    """
    senders: set[bytes] = set()
    recipients: list[bytes] = []
    for path in sorted(folder.iterdir()):
        if path.name == "message":
            continue
        fields = dict(line.split(b": ", 1) for line in path.read_bytes().splitlines() if b": " in line)
        if b"rcpt" not in fields:
            raise ValueError(f"{path}: no envelope")
        # the null reverse-path is an empty local part at an empty domain
        senders.add(fields.get(b"sender", b"@").removeprefix(b"@"))
        recipients.append(fields[b"rcpt"])
    if len(senders) != 1:
        raise ValueError(f"{folder}: {len(senders)} senders in one transaction")
    added, octets = split_trace(crlf((folder / "message").read_bytes()))
    return StoredMessage(folder.name, senders.pop(), tuple(recipients), added, octets)
