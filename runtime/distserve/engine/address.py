"""Reserves the process's address before the model is loaded: a port in use shows at once."""

import socket


def bind(host: str, port: int) -> socket.socket:
    """Reserve the address; uvicorn listens on it once there is something to say.

    Raises OSError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
