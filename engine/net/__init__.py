"""Adapters to the network: DNS, TCP, TLS streams, SMTP sessions."""
