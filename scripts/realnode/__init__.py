"""One real Kubernetes node on a Linux machine without Docker: `make node-up`, `make node-down`, `make test-node`.

Owns everything of that node: its programs, its root file system, its processes in namespaces of their own, its images.
Must not know what is tried on it: that is in tests/node. What it is and which setting avoids which failure:
docs/real-node.md.
"""
