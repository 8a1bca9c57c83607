"""The other processes of a model that is split over several devices: their start, their orders, their end.

Owns which processes make up a group, how each of them is told what to do, and how a death or a silence is noticed.
Must not know tensors or requests: what ranks compute is in runtime.backends, what they serve in runtime.engine.
"""
