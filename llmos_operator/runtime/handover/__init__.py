"""Engine vllm: the runtime's front before a vLLM server in the container beside it.

Owns the way there: fetching the model, the order to start, requests relayed, sleep, adapters, figures, and what to say of
an engine that is gone. Must not know of our own engine, torch or Kubernetes. Why so: docs/adr/0027.
"""
