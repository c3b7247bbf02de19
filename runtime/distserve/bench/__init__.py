"""The measuring room: offers load to any OpenAI server, keeps what it saw, reports on it.

Called by `distserve bench`. Whether a service meets its objectives, up to which rate, and where
the time goes is answered here from the client's side alone, so that systems can be compared.
"""
