"""The OpenAI gateway: admission, routes, streams and their measurement. No torch."""
