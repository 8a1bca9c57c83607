"""The agent on a GPU node: NVML or simulated devices, health verdicts, publishing; and the operator's ingest.

Owns what a device is measured to be.
Must not know workloads, kopf or torch.
"""
