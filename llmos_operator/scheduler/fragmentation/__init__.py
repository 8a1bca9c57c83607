"""What a node is worth to the work that is still to come: request shapes, their prices, and values at these prices.

Owns the linear program that prices shapes and the tables that value nodes.
Must not know filters, scores, placement or Kubernetes.
"""
