"""Orchestration: routing, scheduling, pooling, one attempt, outcomes."""
