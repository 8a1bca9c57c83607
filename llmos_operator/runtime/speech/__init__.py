"""Sound in, text out: what a speech model's tokens mean, forms with files, decoding of sound, and the answers' shapes.

Owns `rules` and `form` (known to front and engine), `multipart`, `decoder` with its process `decoding`, `planning` and
`rendering` (the front's). Must not know torch, nor how an answer is queued and streamed.
"""
