"""The `distserve` command."""
