"""A student behind an HTTP address.

`limits` says what is taken, `images` what becomes of an upload, `batching` how images of many requests are read
together, `student` what is answered, `systemone` in which words, `guard` stands before everything, `app` has the
routes, and `server` the address.
"""
