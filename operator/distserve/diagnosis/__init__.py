"""Why a deployment is not what was asked for: conditions, events, pods and logs joined into one
answer. Pure: `distserve why` collects the facts."""
