"""Fine-tuning: `llmos tune`, a process that trains once and ends. It runs inside the runtime image.

Owns datasets, adapters while they learn, the training loop and its checkpoints; weights come through `runtime.loader`.
Must not know Kubernetes.
"""
