"""The operator: watches deployments and makes the cluster what they say."""
