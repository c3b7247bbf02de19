"""ChunkedPrefill: routed like Colocated; what differs happens inside the engine's steps."""

from distserve.gateway.strategies.colocated import SingleInstanceRouter

make_router = SingleInstanceRouter
