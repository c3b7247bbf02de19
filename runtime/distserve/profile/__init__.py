"""Measures how long this engine's steps take: what plans are made of (`distserve profile`)."""
