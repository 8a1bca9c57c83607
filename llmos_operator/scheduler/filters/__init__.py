"""Hard filters, one file each: which nodes cannot take a request, and what would be the least change that helped.

A filter narrows candidates and names what it turned away; it knows neither other filters nor scores. Static filters
depend on constraints only and are asked once a plan, the others after every placement.
"""
