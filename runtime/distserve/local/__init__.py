"""Runs the rendered pods as local processes, without Kubernetes."""
