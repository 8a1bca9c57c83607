"""Pictures of strangers: decoded in a process of their own, at the size the model wants.

Owns reading of preprocessor_config.json, the decoding process and its front's side.
Must not know the engine or HTTP beyond `runtime.answers`.
"""
