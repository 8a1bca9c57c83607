"""The model server in every workload pod: HTTP front, engine child process, loader, formats.

Owns loading, batching and serving one model truthfully.
Must not know Kubernetes or the operator beyond `api.runtime`.
"""
