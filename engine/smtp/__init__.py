"""The SMTP client protocol, sans-I/O: octets in, values out."""
