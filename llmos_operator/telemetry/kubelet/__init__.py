"""What the node's kubelet tells about devices: its pod-resources API, read over its Unix socket.

Owns the wire (protobuf and gRPC, as far as two calls need them) and the fold into holders of devices. Knows nothing of
the operator, and asks nobody but the kubelet.
"""
