"""How the laws are tried."""

from hypothesis import settings

# An example that takes long is no wrong answer: it may have waited for a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
