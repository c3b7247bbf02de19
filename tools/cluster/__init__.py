"""A real Kubernetes for tests, from package registries alone; docs/testing.md tells how to use it.

with cluster.start(Profile.REAL) ...     providers.py chooses who provides it
`Cluster`                                what a test does with it
`make cluster`, `make cluster-down`      one to keep
"""
