"""`llmos batch`: a file of requests in, a file of answers out, through the same engine and request path as the server.

`lines` reads the input, `results` keeps what has been answered over restarts, `inside` puts a request to the serving
application of this process, `run` keeps the engine full, `program` starts, stops and says how it ended.
"""
