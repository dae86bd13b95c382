"""Where a token stands: rotary angles turned into queries and keys, or a bias by distance."""
