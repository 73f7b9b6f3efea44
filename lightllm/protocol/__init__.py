"""Every message that crosses a process border, and the names of all metrics.

`messages`: Http Server, Router, Detokenizer. `images`: Cache Manager and Visual Server. `rounds`: Router and Model Backends. `control`: what goes over rpyc and
the Supervisor's channel. `codec`: how they become bytes. Nothing is ever unpickled.
"""
