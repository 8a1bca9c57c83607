"""The Service proxy: ClusterIPs of the local cluster, in user land.

Owns listening on each Service's address and forwarding to its ready pods.
Must not know how pods run; it sees the API only.
"""
