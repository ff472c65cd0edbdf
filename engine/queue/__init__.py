"""The durable queue: jobs, recipients, leases, retry schedule."""
