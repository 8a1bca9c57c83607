"""Tool calls: how a model family writes them, how a request forces them, and how they are read from an answer.

Owns the two formats (`styles`), their place in a conversation (`conversation`), the plan of a request (`choosing`) and
the reader of a stream of text (`reading`). Must not know HTTP, tokens or the engine.
"""
