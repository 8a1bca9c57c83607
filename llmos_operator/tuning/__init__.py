"""Fine-tuning, batch inference and compression jobs that run inside the runtime image.

Owns training loops and their checkpoints.
Must not know Kubernetes.
"""
