"""Fixtures every test may use; each lives in a module of tests/support."""

pytest_plugins = ["tests.support.cluster", "tests.support.installed", "tests.support.trying"]
