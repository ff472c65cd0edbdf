"""The expansion language: text -> tree -> program -> bytes, sans-I/O."""
