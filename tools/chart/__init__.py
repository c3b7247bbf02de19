"""The Helm chart as the project uses it: rendered, and what is generated around it."""
