"""The hub mirror: a folder of models behind the routes that model hub clients use.

Owns serving ``STORE/<org>/<name>/``; knows nothing of what the files mean.
Run as ``python -m llmos_operator.local.hub STORE``.
"""
