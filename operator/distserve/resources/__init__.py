"""Deployment and plan to Kubernetes objects: pure functions from dataclasses to dicts."""
