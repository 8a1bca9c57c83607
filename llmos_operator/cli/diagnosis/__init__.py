"""What is wrong with a workload, from everything the API tells of it. Pure.

Owns clues (one fact each), the table of known causes, and the judgement that lays one over the other.
Must not know how facts are fetched or printed.
"""
