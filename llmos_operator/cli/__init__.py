"""The `llmos` command and the kubectl plugin: one file a subcommand.

Owns what people type and read.
Must not hold logic that other packages could own.
"""
