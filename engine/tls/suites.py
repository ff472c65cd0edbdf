"""Names of cipher suites: from OpenSSL's to those of the IANA registry.

Layer: sans-I/O.  Spec: RFC 8446 appendix B.4, and the registry "TLS Cipher Suites"; `$tls_out_cipher_std`.
Those of TLS 1.3 have one name; the older ones are spelled out of the same parts, so there is no table of them.
Invariants: a suite has one name or none; what is not understood has none, whatever it is.
"""

from __future__ import annotations

import re
from typing import Final

_KEYS: Final = {"": "RSA", "ADH-": "DH_anon", "AECDH-": "ECDH_anon", "ECDHE-": "ECDHE_RSA"}
_SUITE: Final = re.compile(
    r"((?:ECDHE|DHE)-(?:RSA|ECDSA|DSS)-|ECDHE-|ADH-|AECDH-|)"
    r"(?:(AES|CAMELLIA|ARIA)(128|256)(?:-(GCM|CCM8?))?(?:-(SHA\d*))?|(CHACHA20-POLY1305))"
)


def registered_name(suite: str) -> str:
    """The name of a suite in the registry; "" for one that no mail server has any business with.

    Args:
        suite: as OpenSSL calls it, such as ``ECDHE-RSA-AES256-GCM-SHA384``.
    """
    if suite.startswith("TLS_"):
        return suite
    found = _SUITE.fullmatch(suite)
    if found is None:
        return ""
    key, cipher, bits, mode, digest, chacha = found.groups()
    start = f"TLS_{_KEYS.get(key) or key[:-1].replace('-', '_')}_WITH_"
    if chacha:
        return f"{start}CHACHA20_POLY1305_SHA256"
    kind = {None: "CBC", "CCM8": "CCM_8"}.get(mode, mode)
    return f"{start}{cipher}_{bits}_{kind}{f'_{digest}' if digest else ''}"
