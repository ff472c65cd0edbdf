"""TLS, certificates and DANE verdicts, sans-I/O."""
