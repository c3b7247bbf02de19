"""One instance of the model: paged KV, continuous batching, and the HTTP server of the Dialect."""
