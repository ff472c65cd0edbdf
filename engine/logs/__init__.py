"""The main log in Exim's format and the same facts as JSON lines."""
