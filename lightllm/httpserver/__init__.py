"""Http Server: client connections, validation, chat templates, tokenization, the record of every request."""
