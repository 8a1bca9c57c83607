"""Answers that keep to a form: schemas as clients send them, grammars, and the token masks that enforce them.

Owns what an answer may say next. `schema` and `text` belong to the front, `compiler` and `guide` to the engine.
Must not know sockets, tensors or how a token is chosen.
"""
