"""Real devices, through the NVIDIA management library. The only users of pynvml.

`codes` says what the library's numbers mean, `calls` lists every call that is made, `library` makes them, `reader`
measures one device, `events` waits for events, `backend` puts them behind the Protocol.
"""
