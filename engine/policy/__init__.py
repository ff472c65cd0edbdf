"""From DNS answers and options to the hosts of a domain and what TLS must prove for each, sans-I/O."""
