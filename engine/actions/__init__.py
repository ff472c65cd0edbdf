"""Event actions and lookups: what runs outside the engine process."""
