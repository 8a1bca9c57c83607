"""The models themselves: transformers' classes fed with packed rows, quantised layers, the KV store, sampling.

Owns torch and transformers. Turns a StepPlan into sampled tokens, or token lists into vectors.
Must not know queues, sockets or where files came from.
"""
