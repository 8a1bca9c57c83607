"""Model files from far away and on a node's disk.

Owns: what a URI's place holds (`sources`), bringing it here in parts (`download`), and the folder of a node that keeps
copies for many pods (`store`). Standard library only, so that agent and runtime can share it; knows nothing of weights.
"""
