"""Workers: what stands behind a controller, in FastChat's protocol and, where there is one, with a server's own API beside it."""
