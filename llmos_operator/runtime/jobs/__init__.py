"""Work that ends: what batch inference and fine-tuning share, and batch inference itself.

Owns the settings of such programs, reading and writing of data URIs, how they end, and the runs over files of requests.
Must not know Kubernetes, nor how a model is trained: that is `tuning`, which uses this package.
"""
