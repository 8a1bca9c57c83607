"""One OpenAI-style endpoint for all workloads: routing by model, request hold, keys, limits.

Owns the way of a request to a replica.
Must not know torch, kopf or NVML, and writes nothing to the API server.
"""
