"""The console: a page that shows people what the operator sees. It reads; nothing can be changed through it.

Owns the page and the JSON it is made from.
Must not know how decisions are made, and shows no field that it does not name.
"""
