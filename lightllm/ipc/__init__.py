"""How messages cross process borders: ZMQ channels, rpyc control calls, a shared snapshot, the runtime folder."""
