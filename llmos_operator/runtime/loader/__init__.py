"""From a model URI to a model that answers: sources, checks, the quantised cache, memory, progress.

Owns the load path and its stages; runs inside the engine process.
Must not know requests or sockets beyond the `emit` function it reports through.
"""
