"""Wire types of llmos.dev/v1alpha1, one file a kind.

Owns fields, bounds, defaults, descriptions and CEL rules; CRDs are generated from here. Import a kind from its own
module, so that a process loads only the kinds it reads.
"""
