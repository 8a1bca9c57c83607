"""The local cluster: control-plane binaries, certificates, process kubelet, service proxy, hub mirror.

Owns everything a laptop needs to run the real system without containers.
Must not know torch.
"""
