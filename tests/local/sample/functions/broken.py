"""A function that cannot start."""

message = "no settings"
raise RuntimeError(message)
