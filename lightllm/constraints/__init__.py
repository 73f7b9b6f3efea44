"""Constrained decoding: which tokens may come next, so that an output matches a regular expression, a grammar or a JSON
schema. The optional package llguidance (extra "constraints") does the work.

check     whether a constraint can be obeyed: asked by the Http Server and the offline `LLM` before a request is accepted
matchers  a matcher a request and the masks of its next tokens: rank 0 of the Model Backend
grammars  from the text of a constraint to the library's matcher, for both
limits    what a constraint may hold before the library reads it
"""
