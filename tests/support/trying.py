"""How hard tests with made-up input try: `LLMOS_PROPERTY_PROFILE=stress` for a night, the default for every run.

By default the inputs are the same ones each time, so that a change is judged by what it changes; stress draws new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

settings.register_profile(
    "default",
    max_examples=60,
    derandomize=True,
    deadline=None,
    suppress_health_check=QUIET,
    print_blob=True,
)
settings.register_profile(
    "stress", max_examples=5000, deadline=None, suppress_health_check=QUIET, print_blob=True
)
settings.load_profile(os.environ.get("LLMOS_PROPERTY_PROFILE", "default"))
