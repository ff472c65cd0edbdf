"""The variables an expansion may name, and what is known of each before it is evaluated.

Layer: sans-I/O.  Spec: expansion.md 7, 1.5 (X-17, X-18), 1.8 (X-24).
"""

from __future__ import annotations

import enum
import re
from typing import Final


class Source(enum.IntEnum):
    """Where the value of a variable comes from."""

    #: the scope's mapping; empty when it is not there
    SCOPE = 0
    #: text from outside, in the scope's mapping: tainted
    OUTSIDE = 1
    #: the evaluation: $value and $item
    VALUE = 2
    ITEM = 3
    #: the scope's ACL variables and arguments
    ACL_C = 4
    ACL_M = 5
    ACL_ARG = 6
    ACL_NARG = 7
    #: the router's own variables
    ROUTER = 8
    #: made from the clock of the scope
    CLOCK = 9
    #: set by an item for what follows it
    DYNAMIC = 10
    #: a certificate in the scope's mapping
    CERTIFICATE = 11
    #: made from the headers of the scope
    MESSAGE = 12


_SCOPE = """
    acl_verify_message address_data address_file address_pipe authentication_failed av_failed body_linecount
    body_zerocount bounce_return_size_limit caller_gid caller_uid compile_date compile_number config_dir
    config_file connection_id csa_status dkim_bodylength dkim_canon_body dkim_canon_headers dkim_created
    dkim_expires dkim_key_granularity dkim_key_length dkim_key_nosubdomains dkim_key_srvtype dkim_key_testing
    dkim_verify_status domain_data event_cert_source event_defer_errno event_name event_redelivered exim_gid
    exim_path exim_uid exim_version headers_added home host_data host_lookup_deferred host_lookup_failed
    initial_cwd interface_port ldap_dn load_average local_part_data local_part_verified local_scan_data
    local_user_gid local_user_uid localhost_number log_inodes log_space mailstore_basename
    max_received_linelength message_age message_body_size message_exim_id message_id message_linecount
    message_size message_smtputf8 mime_anomaly_level mime_content_size mime_is_coverletter mime_is_multipart
    mime_is_rfc822 mime_part_count originator_gid originator_uid pid prdr_requested primary_hostname
    proxy_external_port proxy_local_port proxy_session qualify_domain qualify_recipient queue_name queue_size
    rcpt_count rcpt_defer_count rcpt_fail_count received_count received_ip_address received_port
    received_protocol received_time recipient_data recipient_verify_failure recipients_count rheader_
    router_name sender_address_data sender_data sender_helo_dnssec sender_host_dnssec sender_host_port
    sender_rate sender_rate_limit sender_rate_period sender_verify_failure sending_ip_address sending_port
    smtp_active_hostname smtp_count_at_connection_start smtp_notquit_reason spam_action spam_bar spam_score
    spam_score_int spf_guess spf_result spf_result_guessed spool_directory spool_inodes spool_space tls_bits
    tls_certificate_verified tls_in_bits tls_in_certificate_verified tls_in_cipher_std tls_in_ocsp
    tls_in_resumption tls_in_ver tls_out_bits tls_out_certificate_verified tls_out_cipher_std tls_out_dane
    tls_out_ocsp tls_out_resumption tls_out_tlsa_usage tls_out_ver transport_name verify_mode version_number
    warn_message_delay warn_message_recipient warn_message_recipients warnmsg_delay warnmsg_recipient
    warnmsg_recipients
"""
_OUTSIDE = """
    auth1 auth2 auth3 authenticated_fail_id authenticated_id authenticated_sender bounce_recipient
    callout_address dkim_algo dkim_copiedheaders dkim_cur_signer dkim_domain dkim_headernames dkim_identity
    dkim_key_notes dkim_selector dkim_verify_reason dnslist_domain dnslist_matched dnslist_text dnslist_value
    domain event_data host host_address host_port interface_address local_part local_part_prefix
    local_part_prefix_v local_part_suffix local_part_suffix_v malware_name message_body message_body_end
    mime_anomaly_text mime_boundary mime_charset mime_content_description mime_content_disposition
    mime_content_id mime_content_transfer_encoding mime_content_type mime_decoded_filename mime_filename
    original_domain original_local_part parent_domain parent_local_part proxy_external_address
    proxy_local_address received_for recipients recipients_list regex_match_string reply_address return_path
    self_hostname sender_address sender_address_domain sender_address_local_part sender_fullhost
    sender_helo_name sender_host_address sender_host_authenticated sender_host_name sender_ident sender_rcvhost
    smtp_command smtp_command_argument smtp_command_history spam_report spf_header_comment spf_received
    spf_smtp_comment srs_recipient thisaddress tls_cipher tls_in_cipher tls_in_peerdn tls_in_sni tls_out_cipher
    tls_out_peerdn tls_out_sni tls_peerdn tls_sni
"""
_CERTIFICATES = "tls_in_ourcert tls_in_peercert tls_out_ourcert tls_out_peercert"
_CLOCK = "tod_bsdinbox tod_epoch tod_epoch_l tod_full tod_log tod_logfile tod_zone tod_zulu"
_DYNAMIC = "lookup_dnssec_authenticated prvscheck_address prvscheck_keynum prvscheck_result runrc"

SOURCES: Final[dict[str, Source]] = {
    **dict.fromkeys(_SCOPE.split(), Source.SCOPE),
    **dict.fromkeys(_OUTSIDE.split(), Source.OUTSIDE),
    **dict.fromkeys(_CERTIFICATES.split(), Source.CERTIFICATE),
    **dict.fromkeys(_CLOCK.split(), Source.CLOCK),
    **dict.fromkeys(_DYNAMIC.split(), Source.DYNAMIC),
    **{f"acl_arg{number}": Source.ACL_ARG for number in range(1, 10)},
    "acl_narg": Source.ACL_NARG,
    "message_headers": Source.MESSAGE,
    "message_headers_raw": Source.MESSAGE,
    "value": Source.VALUE,
    "item": Source.ITEM,
}

#: what a variable is that nobody has set, where that is not empty
DEFAULTS: Final[dict[str, bytes]] = {
    **dict.fromkeys(
        [
            *("body_linecount", "body_zerocount", "event_defer_errno", "host_port", "interface_port", "local_user_gid"),
            "event_redelivered",
            *("local_user_uid", "max_received_linelength", "message_age", "message_body_size", "message_linecount"),
            *("message_size", "originator_gid", "originator_uid", "rcpt_count", "rcpt_defer_count", "rcpt_fail_count"),
            *("received_count", "received_port", "received_time", "recipients_count", "runrc", "sender_host_port"),
            *("tls_bits", "tls_in_bits", "tls_in_ocsp", "tls_out_bits", "tls_out_ocsp"),
            *("tls_certificate_verified", "tls_in_certificate_verified", "tls_out_certificate_verified"),
        ],
        b"0",
    ),
    "sending_port": b"-1",
    "tls_out_dane": b"no",
}

_ACL: Final = re.compile(r"acl_[cm](?![A-Za-z])")


def is_known(name: str, extra: frozenset[str] = frozenset()) -> bool:
    """Whether an expansion may name `name` (X-6); `extra` are names this scope has on top."""
    return name in SOURCES or _ACL.match(name) is not None or name.startswith("r_") or name in extra


def source_of(name: str) -> Source:
    """Where the value of a known variable comes from; what only this scope has is text from outside."""
    source = SOURCES.get(name)
    if source is not None:
        return source
    if _ACL.match(name):
        return Source.ACL_C if name[4] == "c" else Source.ACL_M
    return Source.ROUTER if name.startswith("r_") else Source.OUTSIDE


def unknown(message: str, name: str) -> str:
    """`message` with Exim's hint when the name looks like an ACL variable (X-6)."""
    if not name.startswith("acl_"):
        return message
    if name[4:5] not in ("c", "m"):
        return f"{message} (user-defined ACL variables must start acl_c or acl_m)"
    if name[5:6].isalpha():
        return f"{message} (6th character of a user-defined ACL variable must be a digit or underscore)"
    return f"{message} (strict_acl_vars is set)"
