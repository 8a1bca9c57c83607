"""How GPUs can be cut into MIG instances: products as data, layouts, and which of them serves waiting work best.

Owns what fits on one GPU and the comparison of layouts. Must not know nodes, ledgers or how a layout is put into effect.
"""
