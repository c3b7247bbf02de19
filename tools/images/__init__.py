"""The project's container images: `python -m tools.images`, and `archives` for tests."""
