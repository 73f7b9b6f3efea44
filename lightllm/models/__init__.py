"""Model architectures: `TpPartBaseModel`, the registry, one file an architecture."""
