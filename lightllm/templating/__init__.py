"""Chat templates: programs of a model folder, run in a child process with limits of time and memory.

ChatTemplates (`tokenizer/chat_template.py`)
  └─ process     starts and ends child processes, one conversation at a time each
       └─ worker        main loop of a child
            ├─ template      one compiled template
            ├─ traits        what it reads, found by rendering small conversations
            └─ conversation  a client's messages in the form that it reads; what it would leave out is refused

Nothing is imported here: a child loads jinja2 and the standard library only.
"""
