"""Model files: what may be opened, how it is checked, converted and quantised.

Owns safetensors and GGUF reading by content, the config allow-list, digests, GGUF conversion, the quantised cache.
Must not know requests, batches or HTTP. Nothing here executes what a file says.
"""
