"""What all tests share: property tests draw the same examples each time and are never timed."""

from hypothesis import settings

settings.register_profile("moopt", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("moopt")
