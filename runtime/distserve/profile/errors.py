"""Why nothing can be measured; every message is one line and says what to do."""


class ProfileError(Exception):
    """The question, the database or the server cannot be used."""
