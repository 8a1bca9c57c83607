"""Generators of checked-in files and the shell scripts behind the Makefile."""
